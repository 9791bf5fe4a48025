"""The host itself: identity, resources, vitals, the doctor's checks, and the launchd service."""
