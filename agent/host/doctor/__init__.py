"""What breaks a host, found before it does: readings of the system, pure judges of them, and ways to mend.

`table.py` has every check; `doctor.py` takes the readings and runs the judges.
"""
