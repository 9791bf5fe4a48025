"""Builds the guest disks that the demo and the tests run: standard library and Debian packages only.

`scripts/demo-image` is the way in. It must work before the project's virtual environment exists, so nothing here
imports outside the standard library.
"""
