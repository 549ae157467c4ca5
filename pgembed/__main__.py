"""``python -m pgembed`` is the same as ``pgembed``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends it, too."""
    try:
        from pgembed.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit("\nAborted!")  # as click does in a command


if __name__ == "__main__":
    main()
