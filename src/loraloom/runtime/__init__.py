"""What nodes ask of the session that runs them: folders, resident models, LoRAs, previews, output files."""
