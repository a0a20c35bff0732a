"""A real Slurm on this machine: one controller, node daemons of their own names, character devices that stand in for
GPUs. For root, with Debian's slurm-wlm and munge."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
_NULL = (1, 3)  # device number of /dev/null


def missing() -> str:
    """Why there can be no cluster here, or ""."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a Slurm with several node daemons on one machine needs root"


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Cluster:
    """Nodes n1, n2, ... with 2 stand-in GPUs each; partitions low, and high, which preempts low."""

    def __init__(self, folder: Path, num_nodes: int = 2) -> None:
        self.folder, self.num_nodes = folder, num_nodes
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        for name in ("state", "munge", *(f"spool-n{node}" for node in self.nodes)):
            (folder / name).mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)  # munge's clients check who may write above the socket
        (folder / "munge").chmod(0o700)
        self._configure()

    @property
    def nodes(self) -> range:
        return range(1, self.num_nodes + 1)

    def start(self) -> None:
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge/seed",
        )
        self._run("slurmctld", "-f", str(self.conf))
        wait_until(lambda: self.asks("scontrol", "ping") is not None, 20, self._complaints)
        for node in self.nodes:
            self.start_node(node)
        wait_until(lambda: self._idle() == self.num_nodes, 30, self._complaints)

    def start_node(self, node: int) -> None:
        self._run("slurmd", "-N", f"n{node}", "-f", str(self.conf))

    def bring_back(self, node: int) -> None:
        """The node comes back, and Slurm has long seen it: 22.05 gives a job that starts in the second of a return an
        allocation which it then takes for one node (the two minutes that a requeued job waits hide that)."""
        self.start_node(node)
        wait_until(lambda: self._idle() == self.num_nodes, 60, self._complaints)
        time.sleep(10)
        wait_until(lambda: self._idle() == self.num_nodes, 60, self._complaints)

    def kill_node(self, node: int) -> None:
        """As if the machine lost its power: its daemon, its step daemons, all their processes."""
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / f"slurmd-n{node}.pid").read_text()), signal.SIGKILL)
        for pid in self._processes(node):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        files = [*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid", self.folder / "munged.pid"]
        for node in self.nodes:
            for pid in self._processes(node):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        pids = [int(text) for file in files if file.exists() and (text := file.read_text().strip()).isdecimal()]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, number)
            end = time.monotonic() + 5
            while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
                time.sleep(0.1)

    def asks(self, *command: str, stdin: str | None = None) -> str | None:
        """Standard output of one of Slurm's programs, None where it failed."""
        done = subprocess.run(
            command, env=self.environment, input=stdin, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`."""
        shown = self.asks("scontrol", "--oneliner", "show", "job", job) or ""
        return next((word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}=")), "")

    def start_now(self, job: str) -> None:
        """A requeued job waits two minutes, always."""
        self.asks("scontrol", "update", f"JobId={job}", "StartTime=now")

    def _idle(self) -> int:
        return len((self.asks("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N") or "").split())

    def _processes(self, node: int) -> list[int]:
        """The step daemons of a node and what they started, by the environment of the latter."""
        wanted = {f"SLURMD_NODENAME=n{node}".encode(), f"SLURM_CONF={self.conf}".encode()}
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError, ValueError):
                if not wanted <= set(environ.read_bytes().split(b"\0")):
                    continue
                found.append(int(environ.parent.name))
                parent = int((environ.parent / "stat").read_text().rpartition(")")[2].split()[1])
                if b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes():
                    found.insert(0, parent)
        return found

    def _run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, timeout=60, capture_output=True)

    def _complaints(self) -> str:
        return "\n".join(log.read_text()[-1500:] for log in sorted(self.folder.glob("*.log")))

    def _configure(self) -> None:
        for gpu in range(2):
            device = self.folder / f"gpu{gpu}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(*_NULL))
        controller, *ports = free_ports(1 + self.num_nodes)
        host = socket.gethostname().split(".")[0]
        here = self.folder
        lines = f"""ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge.socket
CredType=cred/munge
SlurmctldPidFile={here}/slurmctld.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdPidFile={here}/slurmd-%n.pid
SlurmdLogFile={here}/slurmd-%n.log
SlurmdSpoolDir={here}/spool-%n
StateSaveLocation={here}/state
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=5
MinJobAge=600
KillWait=20
MessageTimeout=10
JobRequeue=1
GresTypes=gpu
PartitionName=low Nodes=n[1-{self.num_nodes}] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n[1-{self.num_nodes}] PriorityTier=10 PreemptMode=OFF
""".splitlines()
        lines += [
            f"NodeName=n{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=8000 Gres=gpu:2"
            for node, port in zip(self.nodes, ports, strict=True)
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        (here / "gres.conf").write_text(f"Name=gpu File={here}/gpu[0-1]\n")
        (here / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def wait_until(holds: Callable[[], object], seconds: float, told: Callable[[], object] = str) -> None:
    """AssertionError with what `told` says where it does not hold in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not in {seconds:.0f} s: {told()}"
        time.sleep(0.3)
