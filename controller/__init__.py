"""Glovebox: autonomous training research you can leave alone."""

__version__ = "0.2.0"
