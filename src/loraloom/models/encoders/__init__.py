"""One file per kind of text encoder, each ending in ENCODER (see `models.encoder`)."""
