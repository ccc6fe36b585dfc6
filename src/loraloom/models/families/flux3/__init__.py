"""FLUX 3."""
