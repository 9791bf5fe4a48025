"""Checks for problems of the host: readings of the system, pure functions that evaluate them, and fixes.

`checks.py` lists every check; `doctor.py` takes the readings and evaluates the checks.
"""
