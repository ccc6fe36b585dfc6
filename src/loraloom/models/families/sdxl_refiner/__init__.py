"""Stable Diffusion XL's refiner."""
