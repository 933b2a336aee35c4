"""Agents turn a context into a proposal. All they can do is write the text of one file."""
