"""Node packs written to ComfyUI's node contract, run as nodes of the engine."""
