"""Model families: recognise a file by its header, build the network, name its weights."""
