"""One module per resource, each with its handlers and the table of its operations."""
