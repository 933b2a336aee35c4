"""The engine's socket in a process of its own: `server` holds it, `client` sends it requests."""
