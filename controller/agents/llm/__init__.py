"""An agent that asks a language model behind the Messages API."""
