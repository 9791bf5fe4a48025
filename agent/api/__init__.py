"""The HTTP interface a controller, a CI job and the command line speak to."""
