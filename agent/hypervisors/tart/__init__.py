"""The tart driver: macOS and Linux VMs on Macs, by the command line of Tart and by the files it keeps."""
