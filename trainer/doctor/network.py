"""Between processes: ports of this machine; over ranks the meeting, one another's versions, clock and all-reduce."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.doctor.finding import Finding
from trainer.run.distributed import Ranks

_SIZES = (4 << 10, 1 << 20, 64 << 20)
_ROUNDS = 5
_SLOW_NCCL = 5e9  # bytes a second: a network card of 50 Gbit/s carries more
_MOST_APART = 1.0  # seconds
_GLOO_TIMEOUT = timedelta(seconds=60)


def ports(rendezvous: int, telemetry: int, num_ranks: int) -> Iterator[Finding]:
    """Whether the ports of a start here are free, and this machine's name leads to it."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        remedy = f"add {name} to /etc/hosts or the DNS; alone, --rdzv-endpoint=localhost:0 works"
        yield Finding("host name", "warn", f"{name} leads nowhere ({error.strerror or error})", remedy)
    else:
        yield Finding("host name", "pass", f"{name} is {address}")
    wanted = {rendezvous: "torchrun's rendezvous"}
    wanted |= {telemetry + rank: "telemetry" for rank in range(num_ranks) if telemetry}
    taken = [f"{port} ({what})" for port, what in wanted.items() if not _free(port)]
    if taken and "TORCHELASTIC_RUN_ID" not in os.environ:  # under torchrun, its own agent holds the first
        remedy = "another job listens there: choose others with ports of the site, or telemetry.port"
        yield Finding("ports", "warn", f"taken: {', '.join(taken)}", remedy)
    else:
        listed = ", ".join(f"{port} ({what})" for port, what in wanted.items())
        yield Finding("ports", "pass", f"free: {listed}" if not taken else "held by this torchrun")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def between_ranks(ranks: Ranks, run_folder: Path, fingerprint: str) -> Iterator[Finding]:
    """Collective: every rank calls it, and finds the same.

    fingerprint  of the data that this rank sees, "" where it sees none
    """
    hosts = ranks.gather([socket.gethostname()])
    backend = dist.get_backend()
    nodes = len(set(hosts))
    said = f"{ranks.world_size} ranks on {nodes} node{'s' * (nodes > 1)} met, {backend}"
    yield Finding("rendezvous", "pass", said, values={"hosts": sorted(set(hosts))})
    yield _cpu_group(ranks)
    yield _same("versions", ranks, f"torch {torch.__version__}, NCCL {_nccl()}", "install the same image on every node")
    yield _same("data of ranks", ranks, fingerprint[:12] or "none", "let every node see the same data, or stage it")
    yield _clocks(ranks)
    yield _shared(ranks, run_folder)
    yield from _all_reduce(ranks, backend, len(set(hosts)))


def _cpu_group(ranks: Ranks) -> Finding:
    """Ranks agree on signals over gloo, whatever gradients go over: it may fail where NCCL works."""
    problem = ""
    try:
        group: Any = dist.new_group(backend="gloo", timeout=_GLOO_TIMEOUT)
        total = torch.ones(1)
        dist.all_reduce(total, group=group)
        dist.destroy_process_group(group)
        if total != ranks.world_size:
            problem = f"a sum over {ranks.world_size} ranks is {float(total):g}"
    except RuntimeError as error:
        problem = str(error).splitlines()[0][:200]
    told = ranks.gather([problem])
    odd = next((rank for rank, one in enumerate(told) if one), None)
    if odd is not None:
        remedy = "set GLOO_SOCKET_IFNAME to the interface between the nodes (ip route get ADDRESS names it)"
        return Finding("CPU group", "fail", f"gloo, rank {odd}: {told[odd]}", remedy)
    over = sorted(set(ranks.gather([os.environ.get("GLOO_SOCKET_IFNAME") or "where the host's name leads"])))
    return Finding("CPU group", "pass", f"gloo sums over {ranks.world_size} ranks ({', '.join(over)})")


def _nccl() -> str:
    return ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "none"


def _same(subject: str, ranks: Ranks, own: str, remedy: str) -> Finding:
    told = ranks.gather([own])
    if len(set(told)) == 1:
        return Finding(subject, "pass", f"the same on every rank: {own}")
    odd = next(rank for rank, one in enumerate(told) if one != told[0])
    return Finding(subject, "fail", f"rank 0 has {told[0]}, rank {odd} {told[odd]}", remedy)


def _clocks(ranks: Ranks) -> Finding:
    ranks.barrier()
    now = ranks.gather([time.time()])  # right after the barrier: what differs beyond its own time is the clocks
    apart = max(now) - min(now)
    said = f"{1e3 * apart:.0f} ms apart at most"
    if apart > _MOST_APART:
        return Finding("clocks of ranks", "warn", said, "start chronyd or systemd-timesyncd on every node")
    return Finding("clocks of ranks", "pass", said)


def _shared(ranks: Ranks, run_folder: Path) -> Finding:
    """The first rank writes, all look: checkpoints are read on every node and written on one."""
    above = run_folder
    while not above.exists():
        above = above.parent
    mark = above / f".earlybird-doctor-{ranks.gather([uuid.uuid4().hex])[0]}"
    problem = ""
    if ranks.is_first:
        try:
            mark.touch()
        except OSError as error:
            problem = str(error.strerror)
    ranks.barrier()
    sees = ranks.gather([mark.exists()])
    ranks.barrier()
    mark.unlink(missing_ok=True) if ranks.is_first else None
    problem = ranks.gather([problem])[0]
    blind = [rank for rank, seen in enumerate(sees) if not seen]
    if problem or blind:
        remedy = "give --run-folder a folder on a disk that all nodes mount under the same path"
        said = problem or f"ranks {', '.join(map(str, blind[:8]))} do not see what rank 0 writes in {above}"
        return Finding("shared folder", "fail", said, remedy)
    return Finding("shared folder", "pass", f"every rank sees what rank 0 writes in {above.absolute()}")


def _all_reduce(ranks: Ranks, backend: str, num_nodes: int) -> Iterator[Finding]:
    """Its result, then bus bandwidth, 2 (n - 1) / n * bytes / seconds as nccl-tests defines it: medians of rounds."""
    n, device = ranks.world_size, ranks.device
    total = torch.full((1024,), float(ranks.rank + 1), device=device)
    dist.all_reduce(total)
    if not bool((total == n * (n + 1) / 2).all()):
        remedy = "NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1 shows which path corrupts; drain the node"
        yield Finding("all-reduce", "fail", f"a sum over {n} ranks comes out wrong", remedy)
        return
    taken = [_median_seconds(torch.zeros(size // 4, device=device)) for size in _SIZES]
    bandwidth = 2 * (n - 1) / n * _SIZES[-1] / taken[-1]
    values = {"seconds": dict(zip(map(str, _SIZES), taken, strict=True)), "bus_bytes_per_second": bandwidth}
    said = f"{bandwidth / 1e9:.2f} GB/s of bus at 64 MiB, {1e6 * taken[0]:,.0f} us for 4 KiB ({backend})"
    if backend == "nccl" and num_nodes > 1 and bandwidth < _SLOW_NCCL:
        remedy = "NCCL_DEBUG=INFO says what it goes over (IB or Socket); NCCL_SOCKET_IFNAME and NCCL_IB_HCA choose"
        yield Finding("all-reduce", "warn", f"{said}: slow between {num_nodes} nodes", remedy, values)
    else:
        yield Finding("all-reduce", "pass", said, values=values)


def _median_seconds(tensor: torch.Tensor) -> float:
    taken = []
    for number in range(_ROUNDS + 1):
        dist.barrier()
        _wait(tensor.device)
        began = time.perf_counter()
        dist.all_reduce(tensor)
        _wait(tensor.device)
        if number:  # the first makes connections
            taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
