"""The node library: one typed function per node; the modules of this folder are the registry."""
