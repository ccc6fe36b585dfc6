"""From a source to graphs that can run; the command line and Python share it. No torch."""
