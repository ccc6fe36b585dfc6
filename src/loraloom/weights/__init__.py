"""Tensor files, storage formats, and which weights are resident where."""
