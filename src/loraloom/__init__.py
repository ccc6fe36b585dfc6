"""Loraloom: runs ComfyUI text-to-image workflows with LoRA."""

__version__ = "0.1.0"
