"""All that the doctor looks at, in order, on one process or on every rank."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dataloading.datasets.open import ImageSet
from deploy.job import Job
from deploy.site import Site
from deploy.targets import target_of
from trainer.config import Config
from trainer.doctor.data import data
from trainer.doctor.finding import Finding, examined, together
from trainer.doctor.forecast import findings, forecast
from trainer.doctor.gpu import gpus
from trainer.doctor.machine import machine
from trainer.doctor.network import between_ranks, ports
from trainer.doctor.run_folder import run_folder
from trainer.doctor.software import software
from trainer.run.distributed import Ranks, process_group, take_device
from trainer.run.folder import private_files

_MEETING_SECONDS = 60.0  # ranks that have not met by then do not


@dataclass(frozen=True)
class Asked:
    """What the examination is to cover.

    run            folder that a run would write to
    device         auto | cpu | cuda
    target         name of a cluster to ask, "" for none; its job would have `nodes` of `gpus` each
    site           ports, and what the cluster wants
    with_forecast  measure the recipe; `batch` images an iteration, 0: the recipe's own
    price          of a device and hour, 0: no cost is told
    """

    run: Path
    device: str = "auto"
    target: str = ""
    nodes: int = 1
    gpus: int = 0
    site: Site = field(default_factory=Site)
    with_forecast: bool = False
    batch: int = 0
    price: float = 0.0


def examine(config: Config, asked: Asked, told: Callable[[str], None] = lambda what: None) -> list[Finding]:
    """Every finding of all ranks, alike on each of them.

    told  hears what is looked at next
    Raises ValueError for a target or a device that there is none of: nothing is examined then.
    """
    cluster = target_of(asked.target) if asked.target else None
    device = take_device("cpu" if asked.device == "cuda" and not torch.cuda.is_available() else asked.device, 0)
    found: list[Finding] = []
    if cluster is not None:
        told(asked.target)
        job = Job(
            "earlybird-doctor", ("doctor",), str(asked.run.absolute()), nodes=asked.nodes, gpus_per_node=asked.gpus
        )
        found += examined(asked.target, lambda: _answers(asked.target, lambda: cluster.check(job, asked.site)))
    with private_files(), process_group(device.type, _MEETING_SECONDS) as ranks:
        images: list[ImageSet] = []
        own: list[Finding] = []
        if ranks.local_rank == 0:
            told("software, GPU, machine")
            own += examined("software", lambda: software(config, ranks.device))
            own += examined("GPU", lambda: gpus(asked.device))
            own += examined("machine", machine)
            port, telemetry = asked.site.ports.rendezvous, config.telemetry.port or asked.site.ports.telemetry
            own += examined("ports", lambda: ports(port, telemetry, ranks.local_world_size))
        told("data")
        looked = examined("data", lambda: data(config, ranks.device, images))
        own += looked if ranks.local_rank == 0 else []
        if ranks.is_first:
            told("run folder")
            classes = len(images[0].classes) if images else None
            own += examined("run folder", lambda: run_folder(asked.run, config, classes))
        ranks.meet("looking at the data")
        by_host = ranks.gather([(socket.gethostname(), own)])
        found += together([(host, lines) for host, lines in by_host if lines])
        if ranks.world_size > 1:
            told("network")
            fingerprint = images[0].fingerprint if images else ""
            found += examined("network", lambda: between_ranks(ranks, asked.run, fingerprint))
        if asked.with_forecast:
            told("forecast")
            found += examined("forecast", lambda: _forecast(config, images, ranks, asked))
    return found


def _answers(name: str, check: Callable[[], None]) -> Iterator[Finding]:
    try:
        check()
    except ValueError as error:
        said, _, remedy = str(error).rpartition("; ")
        yield Finding(name, "fail", said or remedy, remedy if said else "see earlybird submit --help")
    else:
        yield Finding(name, "pass", "its tools are here, it answers, and would take a job")


def _forecast(config: Config, images: list[ImageSet], ranks: Ranks, asked: Asked) -> Iterator[Finding]:
    if not all(ranks.gather([bool(images)])):
        yield Finding("forecast", "warn", "no data to measure on", "name it with --data PATH")
        return
    try:
        found = forecast(config, images[0], ranks, batch=asked.batch)
    except torch.OutOfMemoryError as error:
        double = 2 * config.optim.micro_batches(ranks.world_size)
        remedy = f"optim.accumulation={double} (the same update in smaller parts), or optim.recompute=true"
        yield Finding("memory forecast", "fail", str(error).partition(". ")[0], remedy)
        return
    yield from findings(found, config, asked.price)
