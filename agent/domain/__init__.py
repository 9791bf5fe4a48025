"""The pure core: words, states, rules and decisions. No I/O, no clock, no randomness; imports nothing of ours."""
