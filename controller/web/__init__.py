"""`glovebox web`: a home in a browser."""
