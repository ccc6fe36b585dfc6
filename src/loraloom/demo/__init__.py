"""What Loraloom ships to show itself on a machine without network: a small model, two LoRAs, a workflow.

`recipes/demo_model/` makes the model files; its MODEL_CARD.md says from what.
"""
