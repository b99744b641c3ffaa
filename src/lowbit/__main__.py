"""Run the command line: ``lowbit``, or ``python -m lowbit``."""

import contextlib
import os
import sys


def main() -> int:
    """Run it, and answer Ctrl-C with the same status while it is still being imported."""
    try:
        from .cli import main as run

        status = run()
    except KeyboardInterrupt:
        status = 130
    if status == 130:  # everything is written and closed; to take torch apart would last longer than all of this
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
