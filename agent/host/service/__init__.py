"""The launchd service of Hearth: its files, launchctl, and the steps of `hearth service`."""
