"""The loop: it holds the world, asks the planner what to do, and does it under journal and timeout."""
