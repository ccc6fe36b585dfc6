"""The samplers, one generator each, grouped by the method they come from. The folder is the registry."""
