"""The `hearth` command. Only this module ends the process."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end with its exit code."""
    try:
        from agent.cli.main import run  # noqa: PLC0415 - Ctrl-C during the imports must not print a traceback
        from agent.cli.output import guard_stdout  # noqa: PLC0415

        guard_stdout()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
