"""Interpreting what the judge and the workers report."""
