"""The agent that asks a language model through the Messages API."""
