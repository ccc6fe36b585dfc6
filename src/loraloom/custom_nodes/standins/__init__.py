"""Modules that stand in for those of ComfyUI that packs import."""
