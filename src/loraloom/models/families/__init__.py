"""One folder per model family: family.py, which ends in FAMILY, and network.py."""
