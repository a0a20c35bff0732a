"""Jobs on this machine: a script of its own session, which outlives the shell that started it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.job import Element, Job
from deploy.log_files import LOGS, REFUSAL, TO_RANK_LOG, follow_log, job_log, rank_log
from deploy.record import Record
from deploy.shell import array, exports, quoted
from deploy.site import Site
from deploy.target import ENDED, Standing

SCRIPT = "job.sh"  # in the run folder
_MARKS = (".began", "exit", REFUSAL)  # in its logs

_HEAD = """\
#!/bin/bash
# One torchrun on this machine, and in it one process a GPU.
# shellcheck disable=SC2016
set -u
code=0 asked="" child=""
trap 'asked=yes; if [ -n "$child" ]; then kill -TERM "$child"; fi' TERM INT HUP

# train RUN LOG COMMAND...: a signal is handed on to the command, which saves and ends; RUN's exit file says how.
train() {
  local run=$1 log=$2 ended=0
  shift 2
  if [ -n "$asked" ]; then return; fi
  touch "$run/logs/.began"
  "$@" >> "$log" 2>&1 &
  child=$!
  while true; do
    ended=0
    wait "$child" || ended=$?  # which a signal ends too
    if ! kill -0 "$child" 2> /dev/null; then break; fi
  done
  child=""
  echo "$(date +%FT%T) ended: $ended" >> "$log"
  if [ "$ended" != 0 ]; then code=1; fi
  if [ -n "$asked" ]; then ended=cancelled; fi
  leave "$run" "$ended"
}
# Written whole: who asks sees no half of it.
leave() {
  echo "$2" > "$1/logs/exit.tmp"
  mv "$1/logs/exit.tmp" "$1/logs/exit"
}
"""


class LocalTarget:
    """One machine, no scheduler: a job starts at once; the runs of an array come one after another."""

    def render(self, job: Job, site: Site) -> str:
        meeting = ("--rdzv-endpoint=localhost:0", f"--rdzv-id={job.name}")
        lines = [_HEAD, f"python={quoted(site.python or sys.executable)}", array("torchrun", (*job.torchrun, *meeting))]
        lines += exports(job.variables(site.environment))
        for element in job.elements:
            lines += ["", *_run(element, bool(job.seeds))]
        if job.seeds:
            lines += ["", 'if [ -n "$asked" ]; then code=cancelled; fi', f'leave {quoted(job.run_folder)} "$code"']
        return "\n".join([*lines, ""])

    def check(self, job: Job, site: Site) -> None:
        if job.nodes != 1 or job.min_nodes > 1:
            raise ValueError(f"--nodes is {job.nodes}, but this machine is one node; give --target slurm or kubernetes")
        gpus = _num_gpus()
        if job.gpus_per_node > gpus:
            cpu = "; --gpus 0 trains on the CPU" if gpus == 0 else ""
            raise ValueError(f"--gpus is {job.gpus_per_node}, but this machine has {gpus} (nvidia-smi){cpu}")
        cores = os.cpu_count() or 1
        if job.cpus_per_node > cores:
            raise ValueError(f"--cpus is {job.cpus_per_node}, but this machine has {cores}")

    def submit(self, job: Job, site: Site) -> str:
        folder = Path(job.run_folder)
        for path in {folder, *(Path(element.run_folder) for element in job.elements)}:
            (path / LOGS).mkdir(parents=True, exist_ok=True)
            for name in _MARKS:
                (path / LOGS / name).unlink(missing_ok=True)
        script = folder / SCRIPT
        with os.fdopen(os.open(script, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o750), "w") as file:
            file.write(self.render(job, site))
        process = subprocess.Popen(
            ["bash", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return f"{process.pid}-{_began(process.pid)}"

    def standing(self, record: Record) -> Standing:
        logs = Path(record.run_folder) / LOGS
        lives = _lives(record.id)  # before the file is read: the script may write it and end in between
        if (logs / "exit").is_file():
            code = (logs / "exit").read_text().strip()
            return Standing("cancelled" if code == "cancelled" else "completed" if code == "0" else "failed")
        if not lives:
            return Standing("failed", "its script was killed")
        waits = "_" in record.id and not (logs / ".began").exists()
        return Standing("pending", "another seed trains") if waits else Standing("running", nodes=os.uname().nodename)

    def logs(self, record: Record, rank: int | None, follow: bool) -> Iterator[str]:
        folder = Path(record.run_folder)
        path = job_log(folder, record.id) if rank is None else rank_log(folder, rank)
        return follow_log(path, lambda: not follow or self.standing(record).state in ENDED)

    def cancel(self, record: Record) -> None:
        if self.standing(record).state in ENDED:
            raise ValueError(f"job {record.id} is not there to cancel: it is {self.standing(record).state}")
        os.kill(_pid(record.id), signal.SIGTERM)


def _run(element: Element, in_array: bool) -> list[str]:
    run = element.run_folder
    log = job_log(Path(run), f"_{element.index}" if in_array else "")
    words = ["--no-python", "sh", "-c", TO_RANK_LOG, f"{run}/{LOGS}/rank"]
    return [
        array("arguments", element.arguments),
        f'train {quoted(run)} {quoted(str(log))} "$python" -m torch.distributed.run "${{torchrun[@]}}" \\',
        f'  {" ".join(map(quoted, words))} "$python" -m trainer "${{arguments[@]}}"',
    ]


def _num_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _pid(job_id: str) -> int:
    return int(job_id.partition("-")[0])


def _began(pid: int) -> str:
    """When the process began, in ticks since the machine did: with it a number that another has now is told apart. ""
    for one that is not there or has ended and waits for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _lives(job_id: str) -> bool:
    began = job_id.partition("-")[2].partition("_")[0]
    return bool(began) and _began(_pid(job_id)) == began
