"""The process and its surroundings: clock, signals, streams, environment, text files."""
