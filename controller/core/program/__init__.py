"""train.py as a program: read, normalised, compared, edited, refused."""
