"""`earlybird ...` and `python -m trainer ...`."""

from __future__ import annotations

import os
import sys

from trainer.cli import app


def main() -> None:
    """Run one command. Bad input is one line on standard error and exit code 2; EARLYBIRD_TRACEBACK=1 shows where."""
    try:
        app(prog_name="earlybird")
    except (ValueError, FloatingPointError) as error:
        if os.environ.get("EARLYBIRD_TRACEBACK"):
            raise
        print(f"earlybird: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(3 if isinstance(error, FloatingPointError) else 2)


if __name__ == "__main__":
    main()
