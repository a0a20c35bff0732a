"""`earlybird ...` and `python -m trainer ...`; EARLYBIRD_TRACEBACK=1 shows where an error comes from."""

from __future__ import annotations

import os
import sys

from trainer.cli import app

# oneDNN keeps so many compiled operations (1024 unless told). Where images leave early, each batch size is another one
# in every layer: with fewer kept they are compiled anew again and again, for a quarter of the time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")


def main() -> None:
    """Run one command. What a user can mend is one line on standard error and exit code 2 (a diverged run: 3)."""
    try:
        app(prog_name="earlybird")
    except Exception as error:
        text = None if os.environ.get("EARLYBIRD_TRACEBACK") else _for_the_user(error)
        if text is None:
            raise
        print(f"earlybird: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(3 if isinstance(error, FloatingPointError) else 2)


def _for_the_user(error: Exception) -> str | None:
    """What to tell of an error that is not the program's own; None where a traceback says more."""
    if isinstance(error, ValueError | FloatingPointError):
        return str(error)
    import torch  # only now: it takes seconds

    from trainer.run.distributed import LostRankError
    from trainer.run.manifest import CheckpointError

    if isinstance(error, CheckpointError | LostRankError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error} (EARLYBIRD_TRACEBACK=1 shows where)"
    if isinstance(error, MemoryError) or (type(error) is RuntimeError and "can't allocate memory" in str(error)):
        return (
            f"this machine has too little memory ({str(error).split(': ')[-1]}); make the net, optim.update_batch or "
            f"the set smaller (EARLYBIRD_TRACEBACK=1 shows where)"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU has too little memory for this batch; double optim.accumulation (the same update in smaller "
            "parts), or halve run.evaluation_batch if it was evaluating (EARLYBIRD_TRACEBACK=1 shows where)"
        )
    return None


if __name__ == "__main__":
    main()
