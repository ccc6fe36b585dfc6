"""One file per kind of autoencoder, each ending in AUTOENCODER."""
