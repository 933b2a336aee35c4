"""From asking an agent to an accepted experiment."""
