"""A job: which `earlybird` command runs on how many nodes, whatever the cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

SEED = "{seed}"  # in the path of an origin: the seed of the run that begins with it
LONGEST_NAME = 50  # of the 63 characters of a DNS label: Kubernetes appends the pod's role and number
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # begins with a letter: a headless service does (RFC 1035)
_MEMORY = re.compile(r"[1-9][0-9]*[MGT]")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ALWAYS = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a node that comes back finds the others' store only so (torch 2.14)
    "PYTHONUNBUFFERED": "1",  # a log shows what was printed, not what filled a buffer
}


@dataclass(frozen=True)
class Element:
    """One run of a job: of an array it is one seed's (`index` of it, from 0), else the only one."""

    index: int
    seed: int | None
    run_folder: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What is submitted.

    name             a DNS label: small letters, digits, hyphens
    arguments        of `earlybird`, without the data, the origin, the run folder and the seed of an array: ("train",
                     "demo", ...)
    run_folder       as the nodes see it; with seeds, each has its own in there, seed-N
    runs             what lies in this folder here, the nodes may see in one of theirs; "": the run folder's parent
    data             path of the data as the nodes see it; "": the recipe's own images
    origin           as the nodes see it, the run whose net this one begins with; with seeds, {seed} in it is each run's
    nodes            how many; with `min_nodes` below it the job goes on with so few (elastic)
    gpus_per_node    0 is the CPU
    processes        a node; 0 is one a GPU, on the CPU one
    cpus_per_node    0 leaves it to the cluster
    memory_per_node  as 64G; "" leaves it to the cluster
    minutes          limit of time; 0 leaves it to the cluster
    grace_seconds    between the request to stop and the kill: what run.grace says
    max_restarts     of the processes by torchrun, within one start of the job
    seeds            an array of runs, one a seed; empty: one run with the recipe's seed
    environment      variables of the processes
    """

    name: str
    arguments: tuple[str, ...]
    run_folder: str
    runs: str = ""
    data: str = ""
    origin: str = ""
    nodes: int = 1
    min_nodes: int = 0
    gpus_per_node: int = 0
    processes: int = 0
    cpus_per_node: int = 0
    memory_per_node: str = ""
    minutes: int = 0
    grace_seconds: int = 60
    max_restarts: int = 3
    seeds: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            raise ValueError(
                f"the job's name is {self.name!r}; it must be small letters, digits and hyphens, a letter first, at "
                f"most {LONGEST_NAME} in all (--name gives another)"
            )
        lowest = {"nodes": 1, "grace_seconds": 1}
        counts = ("nodes", "min_nodes", "gpus_per_node", "processes", "cpus_per_node")
        for name in (*counts, "minutes", "grace_seconds", "max_restarts"):
            value, least = getattr(self, name), lowest.get(name, 0)
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes is {self.min_nodes}; it must be at most the {self.nodes} nodes of the job")
        if self.memory_per_node and not _MEMORY.fullmatch(self.memory_per_node):
            raise ValueError(f"memory_per_node is {self.memory_per_node!r}; write it as 500M, 64G or 2T")
        if not self.arguments or not self.run_folder:
            raise ValueError("a job needs the arguments of earlybird and a run folder")
        if self.runs and not PurePosixPath(self.run_folder).is_relative_to(self.runs):
            raise ValueError(f"the run folder {self.run_folder} does not lie in {self.runs}")
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}; each must be a different number from 0")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable; use letters, digits and _")
        for text in (*self.arguments, self.run_folder, self.data, self.origin, *self.environment.values()):
            _passable(text)

    @property
    def processes_per_node(self) -> int:
        return self.processes or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def is_elastic(self) -> bool:
        return 0 < self.min_nodes < self.nodes

    def variables(self, of_site: Mapping[str, str]) -> dict[str, str]:
        """The environment of every process: the site's, what all targets need, and the job's own."""
        quiet = {"NCCL_DEBUG": "WARN"} if self.gpus_per_node else {}  # which a site may set higher
        needed = ALWAYS | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.grace_seconds)}
        return quiet | dict(of_site) | needed | dict(self.environment)

    @property
    def elements(self) -> tuple[Element, ...]:
        """Its runs, with all that `earlybird` is called with."""
        if not self.seeds:
            return (Element(0, None, self.run_folder, self._whole(self.run_folder, self.origin)),)
        folders = [f"{self.run_folder.rstrip('/')}/seed-{seed}" for seed in self.seeds]
        return tuple(
            Element(
                index,
                seed,
                folder,
                self._whole(folder, self.origin.replace(SEED, str(seed)), "--set", f"seed={seed}"),
            )
            for index, (seed, folder) in enumerate(zip(self.seeds, folders, strict=True))
        )

    @property
    def torchrun(self) -> tuple[str, ...]:
        """Options of torchrun that are alike on every target; it adds --rdzv-endpoint, --rdzv-id and, where a host
        cannot know by its name that it is the endpoint, --rdzv-conf=is_host=...

        torchrun hands SIGUSR1 on too: that is how Slurm announces that it will stop a job.
        """
        return (
            f"--nnodes={f'{self.min_nodes}:{self.nodes}' if self.is_elastic else self.nodes}",
            f"--nproc-per-node={self.processes_per_node}",
            f"--max-restarts={self.max_restarts}",
            "--rdzv-backend=c10d",
            "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        )

    def moved_to(self, runs: str) -> Job:
        """The job on nodes that see our folder of runs as `runs`: its run folder, and an origin that lies in there."""
        folder, origin, there = PurePosixPath(self.run_folder), PurePosixPath(self.origin), PurePosixPath(runs)
        here = PurePosixPath(self.runs or folder.parent)
        along = bool(self.origin) and origin.is_relative_to(here)
        return replace(
            self,
            run_folder=str(there / folder.relative_to(here)),
            runs=str(there),
            origin=str(there / origin.relative_to(here)) if along else self.origin,
        )

    def _whole(self, folder: str, origin: str, *more: str) -> tuple[str, ...]:
        data = ("--data", self.data) if self.data else ()
        begins = ("--from", origin) if origin else ()
        return (*self.arguments, *data, *begins, *more, "--run-folder", folder)


def _passable(text: str) -> None:
    if "\0" in text:
        raise ValueError(f"{text!r} holds a NUL character, which no program's argument can hold")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is no valid UTF-8, which schedulers expect; rename it") from None
