"""Chaos: random harm to a real host with real guests, and a judge who checks what the agent made of it."""
