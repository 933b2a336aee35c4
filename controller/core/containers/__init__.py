"""Trust domain and settings → the exact container."""
