"""The `hearth` command, and the only place that ends the process."""

from __future__ import annotations

import sys
from typing import NoReturn

from agent.cli.main import run


def main() -> NoReturn:
    """Run the command line and end with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
