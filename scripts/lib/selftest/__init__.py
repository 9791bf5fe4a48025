"""Questions to a real Mac that no documentation answers, asked of the tools themselves. Run by scripts/mac-selftest."""
