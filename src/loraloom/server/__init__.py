"""HTTP and WebSocket: ComfyUI's wire format, and our own typed interface under /v1."""
