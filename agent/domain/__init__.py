"""The pure core: values, states, rules and decisions. No I/O, no clock, no randomness; imports only itself."""
