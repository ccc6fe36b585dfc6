"""LoRA training: data, noise, loop, export."""
