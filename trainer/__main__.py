"""`earlybird ...` and `python -m trainer ...`; EARLYBIRD_TRACEBACK=1 shows where an error comes from."""

from __future__ import annotations

import os
import sys

from trainer.cli import app


def main() -> None:
    """Run one command. What a user can mend is one line on standard error and exit code 2 (a diverged run: 3)."""
    try:
        app(prog_name="earlybird")
    except Exception as error:
        from trainer.run.manifest import CheckpointError  # only now: torch takes seconds to import

        if os.environ.get("EARLYBIRD_TRACEBACK") or not isinstance(
            error, ValueError | FloatingPointError | CheckpointError
        ):
            raise
        print(f"earlybird: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(3 if isinstance(error, FloatingPointError) else 2)


if __name__ == "__main__":
    main()
