"""Facts about the host itself: memory, processors, disk, identity."""
