"""One adapter algebra per file."""
