"""Child processes: commands with a deadline, detached processes, process identity, and exit watching."""
