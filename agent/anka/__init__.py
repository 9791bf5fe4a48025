"""The `anka` command line, as its driver and its image provider both use it."""
