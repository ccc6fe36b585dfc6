"""One training kind per file."""
