"""The tart driver: macOS and Linux VMs on Macs, by the command line of Tart and by what it keeps on the disk."""
