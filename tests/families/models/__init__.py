"""Narrow diffusion models with the very weights that the figures were measured on: one file per family."""
