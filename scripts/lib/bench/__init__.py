"""Measurements of Hearth, each against an independent program or a floor measured in the same run."""
