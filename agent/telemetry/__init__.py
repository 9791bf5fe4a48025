"""What the agent tells about itself: structured logs and metrics. Imports the domain only."""
