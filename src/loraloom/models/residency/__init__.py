"""Where weights stay while they are used: loading, patching, streaming, and the memory of each device."""
