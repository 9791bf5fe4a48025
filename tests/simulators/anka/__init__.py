"""A simulated Anka: the program `anka` with its documented command line, and its Registry.

Its quirks are numbered in docs/mac-contracts.md (A1, A2, …), with their sources. `install` writes the program,
`Home` is its state on disk, `Faults` cause failures, `AnkaRegistry` is the Registry's REST API.
"""
