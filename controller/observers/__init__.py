"""Observers of events as they happen: terminal, log, heartbeat, notifications."""
