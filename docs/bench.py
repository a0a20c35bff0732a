"""Run the commands of pages' `bench` blocks again, and put what they print now in the place of what they printed.

    python docs/bench.py PAGE... [--only REGEX] [--list]

A block is fenced by ```bench and starts with `$ ` and one command (a line that ends in a backslash goes on in the
next); the rest is its output. Commands run in the folder EARLYBIRD_DATA (default ../shared/data beside the repository),
where the archives that they name lie, with the environment's programs first in the PATH. Exit code 1 where one fails:
its block stays as it was.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<head>^```bench\n\$ )(?P<command>(?:.*\\\n)*.*\n)(?P<output>(?:(?!```).*\n)*?)(?P<foot>```$)", re.M
)
WIDTH = "110"  # columns of a table


def rerun(page: Path, only: str = "", listing: bool = False) -> int:
    """Rewrite `page` after every command, so that an interrupted run keeps what it has; the number of failures."""
    failures = 0
    for command in [found["command"] for found in BLOCK.finditer(page.read_text())]:
        if not re.search(only, command):
            continue
        print(f"$ {command.rstrip()}", file=sys.stderr, flush=True)
        if listing:
            continue
        began = time.monotonic()
        done = subprocess.run(
            command, shell=True, cwd=_data_folder(), env=_environment(), stdout=subprocess.PIPE, text=True
        )
        print(f"  {time.monotonic() - began:.0f} s, exit code {done.returncode}", file=sys.stderr, flush=True)
        if done.returncode or not done.stdout.strip():
            failures += 1
            continue
        output = "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").splitlines())
        text = replaced(page.read_text(), command, output)
        temporary = page.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(page)
    return failures


def replaced(text: str, command: str, output: str) -> str:
    """`text` with `output` in the block of `command`."""
    return BLOCK.sub(
        lambda found: f"{found['head']}{command}{output}{found['foot']}" if found["command"] == command else found[0],
        text,
    )


def _data_folder() -> Path:
    folder = Path(os.environ.get("EARLYBIRD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"EARLYBIRD_DATA: there is no folder {folder}; name the one that holds the archives")
    return folder


def _environment() -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": programs, "COLUMNS": WIDTH, "NO_COLOR": "1"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE")
    parser.add_argument("--only", default="", metavar="REGEX", help="commands that match")
    parser.add_argument("--list", action="store_true", help="show the commands, run none")
    given = parser.parse_args()
    sys.exit(1 if sum(rerun(page, given.only, given.list) for page in given.pages) else 0)
