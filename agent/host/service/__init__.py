"""Hearth as a job of launchd: what is written for it, how launchd is spoken to, and the steps of each command."""
