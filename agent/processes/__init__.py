"""External commands and processes: run with a deadline, started detached, told apart, and watched for their end."""
