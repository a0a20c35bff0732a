"""The batch script of a job on Slurm."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploy.job import Job
from deploy.log_files import LOGS, REFUSAL, TO_RANK_LOG
from deploy.shell import array, exports, quoted
from deploy.site import Site, Slurm

COARSE_CLOCK = 60  # seconds by which Slurm's signals before the end of a job may be late
_PLAIN = re.compile(r"[\w@%+=:,./\[\]&|*-]+", re.ASCII)

# On each node. A host cannot always tell by its name that it is the rendezvous endpoint: the first one is told.
_NODE = """\
set -eu
endpoint=no
if [ "$SLURM_NODEID" = 0 ]; then endpoint=yes; fi
address=$(echo "$EARLYBIRD_ADDRESSES" | cut -d " " -f $((SLURM_NODEID + 1)))
python=$1
shift
exec "$python" -m torch.distributed.run --local-addr="$address" --rdzv-conf="is_host=$endpoint" "$@"
"""
# On each node, outside the container; another job of this node may want the same copy.
_STAGE = """\
set -eu
mkdir -p "$2"
exec 9> "$2.lock"
flock 9
if [ ! -e "$2/done" ]; then
  rm -rf "$2"
  mkdir -p "$2"
  cp -RL "$1" "$2/"
  touch "$2/done"
fi
"""

_ADDRESSES = """\
# Where the nodes are, as Slurm knows them: their names need not resolve.
declare -A address=()
while read -r line; do
  if [[ $line =~ NodeName=([^ ]+).*NodeAddr=([^ ]+) ]]; then address[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}; fi
done < <(scontrol --oneliner show node "$SLURM_JOB_NODELIST")
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
EARLYBIRD_ADDRESSES=""
for node in "${nodes[@]}"; do EARLYBIRD_ADDRESSES+="${address[$node]:-$node} "; done
export EARLYBIRD_ADDRESSES
head=${EARLYBIRD_ADDRESSES%% *}
"""

_TRAPS = """\
# USR1 comes before the limit of time and before a preemption: the run saves, and the job goes back into the queue.
# TERM comes from a cancel: the run saves, and the job is over. What copies data is ended by both.
told="" cancelled="" handed="" step="" code=0
hand_on() {
  if [ -z "$step" ]; then return; fi
  handed=yes
  kill -USR1 "$step" 2> /dev/null
}
trap 'told=yes; hand_on' USR1
trap 'cancelled=yes; hand_on' TERM
# Until the step in the background has ended: a signal ends bash's wait too.
follow() {
  step=$! handed=""
  if [ -n "$told$cancelled" ] && [ -z "$handed" ]; then hand_on; fi
  while true; do
    code=0
    wait "$step" || code=$?
    if ! kill -0 "$step" 2> /dev/null; then break; fi
  done
  step=""
}
"""

_END = """\
# torchrun ends with 1 whatever its processes end with: what the run itself says decides.
state() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*' | cut -d = -f 2; }
status=""
if [ "$run/summary.json" -nt "$began" ]; then
  status=$(sed -n 's/^ *"status": "\\([a-z]*\\)".*/\\1/p' "$run/summary.json")
fi
# A node that fails takes the step with it, often before Slurm misses the node. So what was under way is tried again,
# but not what was refused or diverged, nor what did not come to a checkpoint three times in a row.
is_worth_another_start() {
  local failures=0
  local lost='State=[A-Z+]*([*]|DOWN|NOT_RESPONDING)'
  if [ "$run/log.jsonl" -nt "$began" ] && tail -n 1 "$run/log.jsonl" | grep -q '"diverged"'; then return 1; fi
  if scontrol --oneliner show node "$SLURM_JOB_NODELIST" | grep -Eq "$lost"; then return 0; fi
  if ! [ "$run/log.jsonl" -nt "$began" ]; then return 1; fi
  if [ -e "$logs/.failures" ] && ! [ "$run/checkpoints" -nt "$began" ]; then failures=$(< "$logs/.failures"); fi
  echo $((failures + 1)) > "$logs/.failures"
  [ "$failures" -lt 2 ]
}
echo "$(date +%FT%T) ended: ${status:-without a summary}, srun $code"
case $status in completed | stopped) exit 0 ;; esac
if [ -e "$refused" ]; then
  echo "refused: $(< "$refused")"
  exit 1
fi
# Where Slurm ends the job itself, cancelled or put back for a node that failed, nothing is left to do: TERM came too, a
# cancel would take it out of the queue, and a requeue bring back what someone cancelled.
if [ "$(state)" != RUNNING ]; then exit 1; fi
if [ -n "$cancelled" ]; then
  scancel "$SLURM_JOB_ID"
  sleep 60
elif [ -n "$told" ] || [ "$status" = preempted ] || is_worth_another_start; then
  if scontrol requeue "$SLURM_JOB_ID"; then sleep 600; fi
fi
exit 1
"""


def render(job: Job, site: Site, python: str) -> str:
    """The script, as sbatch reads it.

    Raises ValueError for values that Slurm's own lines, which are no shell, cannot hold.
    """
    slurm = site.slurm
    lines = ["#!/bin/bash", *_directives(job, slurm), "# shellcheck disable=SC1091,SC2016", ""]
    lines += [
        "# One torchrun a node, and in it one process a GPU; they meet at the first node.",
        "set -u",
        _TRAPS,
        f"python={quoted(python)}",
        f"run={quoted(job.run_folder.rstrip('/') or '/')}",
        *([f"data={quoted(job.data)}"] if job.data else []),
        *([f"origin={quoted(job.origin)}"] if job.origin else []),
        array("arguments", job.arguments),
    ]
    if job.seeds:
        lines += [
            f"seeds=({' '.join(map(str, job.seeds))})",
            "seed=${seeds[$SLURM_ARRAY_TASK_ID]}",
            'run+="/seed-$seed"',
            *([r"origin=${origin//\{seed\}/$seed}"] if job.origin else []),
        ]
    lines += [
        f'logs="$run/{LOGS}"',
        'mkdir -p "$logs"',
        'began="$logs/.began"',
        'touch "$began"',
        f'refused="$logs/{REFUSAL}"',
        'rm -f "$refused"',
        "",
    ]
    lines += exports(job.variables(site.environment))
    if slurm.modules:
        lines += [
            "if ! command -v module > /dev/null; then source /etc/profile; fi",
            *(f"module load {quoted(module)} || exit 1" for module in slurm.modules),
        ]
    lines += ["", _ADDRESSES]
    lines += _staging(job, slurm)
    lines += [_final_arguments(job)]
    lines += [f"port=$(({site.ports.rendezvous} + SLURM_JOB_ID % 1000))", _torchrun(job)]
    lines += list(_launch(job, slurm))
    lines += [
        'echo "$(date +%FT%T) job $SLURM_JOB_ID start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"',
        'if [ -z "$told$cancelled" ]; then',
        '  "${launch[@]}" &',
        "  follow",
        "fi",
        "",
        _END,
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _directives(job: Job, slurm: Slurm) -> list[str]:
    log = f"{job.run_folder.rstrip('/')}/{LOGS}/job".replace("%", "%%") + ("-%a.log" if job.seeds else ".log")
    options: dict[str, str | int] = {
        "job-name": job.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gres": f"gpu:{job.gpus_per_node}" if job.gpus_per_node else "",
        "cpus-per-task": _cpus(job, slurm),
        "mem": job.memory_per_node,
        "time": job.minutes,
        "array": f"0-{len(job.seeds) - 1}" if job.seeds else "",
        "signal": f"B:USR1@{slurm.signal_seconds or job.grace_seconds + COARSE_CLOCK}",
        "open-mode": "append",
        "output": log,
    }
    written = [f"--{name}={_directive(name, str(value))}" for name, value in options.items() if value]
    written += ["--requeue", *(["--no-kill"] if job.is_elastic else [])]
    for option in slurm.options:
        name, equals, value = option.removeprefix("--").partition("=")
        written.append(f"--{_directive('options', name)}{equals}{_directive(name, value) if value else ''}")
    return [f"#SBATCH {option}" for option in written]


def _directive(name: str, value: str) -> str:
    """A value as sbatch reads it: its lines know double quotes and backslashes, and no line break."""
    if any(ord(char) < 32 or ord(char) == 127 or char in "\x85\u2028\u2029" for char in value):
        where = "the run folder" if name == "output" else name
        raise ValueError(f"{where} is {value!r}; Slurm takes no line breaks and control characters there")
    if name == "output" and "\\" in value:
        # A backslash in it switches Slurm's patterns off, its own escape too.
        raise ValueError(f"the run folder is {value!r}; Slurm takes no backslash there")
    return value if _PLAIN.fullmatch(value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _cpus(job: Job, slurm: Slurm) -> int:
    return job.cpus_per_node or slurm.cpus_per_gpu * job.gpus_per_node


def _staging(job: Job, slurm: Slurm) -> list[str]:
    if not (slurm.staging and job.data):
        return []
    variable, _, below = slurm.staging.removeprefix("$").partition("/")
    root = quoted(slurm.staging) if slurm.staging.startswith("/") else f'"${{{variable}:?}}"{quoted("/" + below)}'
    return [
        "# The data, on every node's own disk; a copy is used again as long as the original keeps its time stamp.",
        f'staged={root}/earlybird/$(stat -c %Y "$data")-$(echo "$data" | cksum | cut -d \' \' -f 1)',
        f'srun --ntasks-per-node=1 sh -c {quoted(_STAGE)} sh "$data" "$staged" &',
        "follow",
        'if [ "$code" != 0 ] && [ -z "$told$cancelled" ]; then exit 1; fi',
        'data="$staged/$(basename "$data")"',
        "",
    ]


def _final_arguments(job: Job) -> str:
    more = ['--data "$data"'] if job.data else []
    more += ['--from "$origin"'] if job.origin else []
    more += ['--set "seed=$seed"'] if job.seeds else []
    return "arguments+=(" + " ".join([*more, '--run-folder "$run"']) + ")"


def _torchrun(job: Job) -> str:
    return array(
        "torchrun",
        job.torchrun,
        '--rdzv-endpoint="$head:$port"',
        '--rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
        f'--no-python sh -c {quoted(TO_RANK_LOG)} "$logs/rank"',
        '"$python" -m trainer "${arguments[@]}"',
    )


def _launch(job: Job, slurm: Slurm) -> Iterator[str]:
    words = [f"--cpu-bind={slurm.cpu_bind}", "--ntasks-per-node=1"]
    # Where fewer nodes will do, one that fails takes none with it.
    words += ["--no-kill", "--kill-on-bad-exit=0"] if job.is_elastic else ["--kill-on-bad-exit=1"]
    if cpus := _cpus(job, slurm):
        words.append(f"--cpus-per-task={cpus}")  # a step does not take it over from the job since Slurm 22.05
    expanded: list[str] = []
    # By the folder that holds it: an origin may go once the run has begun.
    held = [f'$(dirname "${name}")' for name, path in (("data", job.data), ("origin", job.origin)) if path]
    mounts = ["$run:$run", *(f"{folder}:{folder}" for folder in held)]
    if slurm.container_image:
        for path in (job.run_folder, job.data, job.origin):
            if any(char in path for char in ":,"):
                raise ValueError(f"{path} holds a colon or comma, which a container's list of mounts cannot hold")
        given = [quoted(mount) for mount in slurm.container_mounts]
        always = [f'"{mount}"' for mount in mounts]
        if slurm.container_kind == "pyxis":
            expanded = [f"--container-image={quoted(slurm.container_image)}"]
            yield f"mounts=({' '.join([*always, *given])})"
            expanded.append('--container-mounts="$(IFS=,; echo "${mounts[*]}")"')
        else:
            nvidia = "--nv " if job.gpus_per_node else ""
            binds = " ".join(f"--bind {mount}" for mount in [*always, *given])
            expanded = [f"apptainer exec {nvidia}{binds} {quoted(slurm.container_image)}"]
    yield array("launch", ["srun", *words], *expanded, f'sh -c {quoted(_NODE)} sh "$python" "${{torchrun[@]}}"')
