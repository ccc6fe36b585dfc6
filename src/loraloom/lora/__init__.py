"""LoRA files: dialects, algorithms, receipts, patches."""
