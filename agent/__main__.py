"""The `hearth` command, and the only place that ends the process."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end with its exit code."""
    try:
        from agent.cli.main import run  # noqa: PLC0415 - a Ctrl-C that meets the imports is no reason for a traceback
        from agent.cli.streams import guard  # noqa: PLC0415

        guard()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
