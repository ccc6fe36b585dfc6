"""One file per model family, each ending in FAMILY."""
