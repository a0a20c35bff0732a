"""The machine a process runs on: cores, memory, shared memory, open files, clock."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from trainer.doctor.finding import Finding

_SHARED = Path("/dev/shm")
_ENOUGH_SHARED, _TOO_LITTLE_SHARED = 1 << 30, 64 << 20  # 64 MB is what a container gets that asks for nothing
_ENOUGH_FILES, _TOO_FEW_FILES = 4096, 256
_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)
_MOST_OFF = 1.0  # seconds


def machine() -> Iterator[Finding]:
    """Of this process's machine or container."""
    yield cores()
    yield memory()
    yield shared_memory(shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else None)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield clock()


def cores() -> Finding:
    allowed, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _quota()
    said = f"{allowed} of {there}"
    if quota is not None and quota < allowed:
        remedy = "ask for as many as are used, or set data.num_threads and OMP_NUM_THREADS to the quota"
        return Finding("cores", "warn", f"{said}, held to the time of {quota:.1f} (cgroup)", remedy)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if allowed < ranks:
        remedy = "ask for at least one a process (submit --cpus), or for fewer processes"
        return Finding("cores", "warn", f"{said} for {ranks} processes", remedy)
    busy = os.getloadavg()[0]
    if busy > 1.5 * there:
        remedy = "other programs take their share: measure and train where they do not run"
        return Finding("cores", "warn", f"{said}; {busy:.1f} processes want one (load average)", remedy)
    return Finding("cores", "pass", f"{said} (load average {busy:.1f})")


def memory() -> Finding:
    state, limit = psutil.virtual_memory(), _cgroup("memory.max")
    left = state.available
    if limit is not None:
        used = _cgroup("memory.current") or 0
        left = min(left, limit - used)
    said = f"{left / 2**30:.1f} GiB of {min(state.total, limit or state.total) / 2**30:.1f} left"
    if left < 2**30:
        return Finding("memory", "warn", said, "end what holds it, or ask for more (submit --memory)")
    return Finding("memory", "pass", said)


def shared_memory(free: int | None) -> Finding:
    """free  bytes of /dev/shm, None where there is none; NCCL and torchvision's workers pass data through it."""
    subject = "shared memory"
    remedy = "start the container with --shm-size=16g, or set kubernetes.shared_memory of the site"
    if free is None:
        return Finding(subject, "fail", f"there is no {_SHARED}", remedy)
    said = f"{free / 2**30:.2f} GiB free in {_SHARED}"
    if free <= _TOO_LITTLE_SHARED:
        return Finding(subject, "fail", said, remedy)
    return Finding(subject, "warn", said, remedy) if free < _ENOUGH_SHARED else Finding(subject, "pass", said)


def open_files(soft: int, hard: int) -> Finding:
    """A loader holds archives and folders open, torchrun and NCCL sockets for every rank."""
    subject, said = "open files", f"{_many(soft)} at most"
    if soft in (-1, resource.RLIM_INFINITY) or soft >= _ENOUGH_FILES:
        return Finding(subject, "pass", said)
    remedy = f"ulimit -n {_ENOUGH_FILES if hard == -1 else min(hard, 65536)} before the start; hard limit {_many(hard)}"
    return Finding(subject, "fail" if soft < _TOO_FEW_FILES else "warn", said, remedy)


def _many(limit: int) -> str:
    return "without limit" if limit in (-1, resource.RLIM_INFINITY) else f"{limit:,}"


def clock() -> Finding:
    """Whether the kernel's clock follows a time server (adjtimex), and runs evenly with the monotonic one."""
    drift = abs(_gap() - _gap(0.02))
    if drift > 0.01:
        remedy = "find what sets the clock in jumps (date, a hypervisor); times in logs cannot be trusted"
        return Finding("clock", "warn", f"it moved {1e3 * drift:.0f} ms against the monotonic clock in 20 ms", remedy)
    asked = _ask_kernel()
    if asked is None:
        remedy = "chronyc tracking or timedatectl on the host say more"
        return Finding("clock", "warn", "even; whether it follows a time server is not told here", remedy)
    synchronised, most_off = asked
    if not synchronised:
        remedy = "start chronyd or systemd-timesyncd; between nodes, times in logs and metrics will not fit"
        return Finding("clock", "warn", "even, but it follows no time server", remedy)
    said = f"follows a time server, at most {1e3 * most_off:.1f} ms off"
    if most_off > _MOST_OFF:
        return Finding("clock", "warn", said, "chronyc sources shows whether the time servers answer")
    return Finding("clock", "pass", said)


def _gap(after: float = 0.0) -> float:
    time.sleep(after)
    return time.time() - time.monotonic()


class _Timex(ctypes.Structure):
    """struct timex of <sys/timex.h>, up to what is read, with room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def _ask_kernel() -> tuple[bool, float] | None:
    """(synchronised, seconds it may be off); None where the kernel does not say."""
    asked = _Timex()  # modes 0: asks, sets nothing
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(asked))
    return None if state < 0 else (state != _UNSYNCHRONISED, asked.maxerror / 1e6)


def _quota() -> float | None:
    """Cores' worth of time that the cgroup gives; None without a limit."""
    text = _cgroup_text("cpu.max")
    first, _, period = text.partition(" ")
    return int(first) / int(period) if first.isdecimal() and period.isdecimal() else None


def _cgroup(name: str) -> int | None:
    text = _cgroup_text(name)
    return int(text) if text.isdecimal() else None


def _cgroup_text(name: str) -> str:
    """Of this process's cgroup (version 2), "" where it has no such file."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        return (Path("/sys/fs/cgroup") / own / name).read_text().strip()
    except OSError:
        return ""
