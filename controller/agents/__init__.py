"""Agents turn a context into a proposal; text of one file is their only power."""
