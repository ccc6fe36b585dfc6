"""A file that is no pack."""
