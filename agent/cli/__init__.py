"""The `hearth` command: a module for each command group, an API client, and tables for terminals."""
