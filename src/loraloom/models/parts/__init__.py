"""What several families, encoders or autoencoders share: layouts, names, positions, predictions."""
