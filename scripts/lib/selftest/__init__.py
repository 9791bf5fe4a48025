"""Self-test on a real Mac: checks undocumented behaviour of Anka and Tart. Run by scripts/mac-selftest."""
