"""Anka on a host that has none: a program `anka` that follows the documented command line, and its Registry.

Its quirks are numbered in docs/mac-contracts.md (A1, A2, …), with their sources. `install` puts the program somewhere,
`Home` is its state on disk, `Faults` make it misbehave, `AnkaRegistry` is the Registry's REST API.
"""
