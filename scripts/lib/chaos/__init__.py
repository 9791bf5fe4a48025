"""Chaos tests: random faults on a host with real guests, and a checker of the state that the agent reaches."""
