"""Builder of the guest disks for the demo and the tests, from Debian packages. Run by `scripts/demo-image`.

It must work before the project's virtual environment exists, so it imports only the standard library.
"""
