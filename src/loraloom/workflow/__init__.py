"""Any source → Graph; node schemas; validation (standard library only)."""
