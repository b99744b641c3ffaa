"""Run the command line: ``lowbit``, or ``python -m lowbit``."""

import sys


def main() -> int:
    """Run it, and answer Ctrl-C with the same status while it is still being imported."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
