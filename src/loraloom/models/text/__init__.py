"""Tokenizers, prompt weights and text encoders."""
