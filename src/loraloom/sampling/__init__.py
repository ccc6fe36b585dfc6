"""Schedules, samplers, guidance, noise, denoisers."""
