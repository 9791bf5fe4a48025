"""What people and machines read about the agent: structured logs and metrics."""
