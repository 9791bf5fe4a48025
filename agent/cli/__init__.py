"""The `hearth` command: one module per command group, an API client, and rendering for terminals."""
