"""A site's profile: what its clusters want beyond the job, from a TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.volumes import OBJECT, read_volumes, volume_of

_STAGING = re.compile(r"(/|\$[A-Za-z_][A-Za-z0-9_]*)[^\n]*")
_SECRET = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[-._a-zA-Z0-9]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_KINDS = {str: "a string", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Ports:
    """Table [ports].

    rendezvous  where torchrun's nodes meet; Slurm adds the job's number modulo 1000, so that jobs of one node differ
    telemetry   of the Prometheus endpoint; 0 leaves telemetry.port as it is
    """

    rendezvous: int = 29400
    telemetry: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rendezvous", 1024), ("telemetry", 0)):
            if not least <= getattr(self, name) <= 64_000:
                raise ValueError(f"ports.{name} is {getattr(self, name)}; it must lie in [{least}, 64000]")


@dataclass(frozen=True)
class Slurm:
    """Table [slurm]; "" leaves a choice to the cluster.

    modules           loaded on the node before anything else
    container_kind    pyxis (srun --container-image) | apptainer (apptainer exec)
    container_image   an image's address or file; "": no container
    container_mounts  as SOURCE:TARGET, besides the run folder and the data, which are always mounted
    staging           folder of a node's own disk that the data is copied to first, as /scratch or $SLURM_TMPDIR
    cpus_per_gpu      what a job gets that does not say --cpus; 0: what the cluster gives, often 1 a node
    cpu_bind          of srun: none | cores | sockets | ldoms
    signal_seconds    how long before the end the job is told; 0: its grace and 60 s, for Slurm's clock is coarse
    options           more of sbatch's, one a string: ["--exclusive", "--mail-type=FAIL"]
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    modules: tuple[str, ...] = ()
    container_kind: str = "pyxis"
    container_image: str = ""
    container_mounts: tuple[str, ...] = ()
    staging: str = ""
    cpus_per_gpu: int = 0
    cpu_bind: str = "none"
    signal_seconds: int = 0
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.container_kind not in ("pyxis", "apptainer"):
            raise ValueError(f"slurm.container_kind is {self.container_kind!r}; it must be pyxis or apptainer")
        if self.cpu_bind not in ("none", "cores", "sockets", "ldoms"):
            raise ValueError(f"slurm.cpu_bind is {self.cpu_bind!r}; it must be none, cores, sockets or ldoms")
        if not 0 <= self.signal_seconds <= 65535:
            raise ValueError(f"slurm.signal_seconds is {self.signal_seconds}; Slurm takes 0 to 65535")
        if not 0 <= self.cpus_per_gpu <= 1024:
            raise ValueError(f"slurm.cpus_per_gpu is {self.cpus_per_gpu}; it must lie in [0, 1024]")
        if self.staging and not _STAGING.fullmatch(self.staging):
            raise ValueError(f"slurm.staging is {self.staging!r}; it must begin with / or with $VARIABLE")
        for mount in self.container_mounts:
            if ":" not in mount or "," in mount:
                raise ValueError(f"slurm.container_mounts has {mount!r}; write SOURCE:TARGET, without commas")
        for option in self.options:
            if not option.startswith("--"):
                raise ValueError(f"slurm.options has {option!r}; write an option of sbatch, as --exclusive")


@dataclass(frozen=True)
class Kubernetes:
    """Table [kubernetes]; "" leaves a choice to the cluster.

    context          of kubectl's configuration
    api              auto (asks the cluster) | trainjob (Kubeflow Trainer v2) | jobset
    image            that the pods run; needed
    image_secret     name of the secret that pulls it
    queue            Kueue's local queue
    volumes          MOUNT = "pvc:CLAIM[/SUBPATH][:ro]" | "hostPath:/FOLDER[:ro]" | "s3:BUCKET[/PREFIX]" (read through
                     Mountpoint's CSI driver, read-only): where data and runs lie
    runs             folder of the pods for the run folders that lie on no volume's path: RUNS/NAME, or "" for none
    secrets          VARIABLE = "SECRET/KEY", by reference alone
    resources        more that a pod asks for, as "rdma/ib" = "1"
    shared_memory    of a pod, as 16Gi; it counts to the pod's memory
    user, group      that the pods run as, and that the volumes belong to
    check_nodes      refuse a job whose GPUs no present node has; false where nodes come when they are asked for
    """

    namespace: str = ""
    context: str = ""
    api: str = "auto"
    image: str = ""
    image_secret: str = ""
    queue: str = ""
    priority_class: str = ""
    service_account: str = ""
    shared_memory: str = "16Gi"
    user: int = 10001
    group: int = 10001
    check_nodes: bool = True
    runs: str = ""
    volumes: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.api not in ("auto", "trainjob", "jobset"):
            raise ValueError(f"kubernetes.api is {self.api!r}; it must be auto, trainjob or jobset")
        for name in ("namespace", "image_secret", "queue", "priority_class", "service_account"):
            if getattr(self, name) and not OBJECT.fullmatch(getattr(self, name)):
                raise ValueError(
                    f"kubernetes.{name} is {getattr(self, name)!r}; names are small letters, digits, hyphens and dots"
                )
        if not re.fullmatch("[1-9][0-9]*[MG]i", self.shared_memory):
            raise ValueError(f"kubernetes.shared_memory is {self.shared_memory!r}; write it as 500Mi or 16Gi")
        for name in ("user", "group"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(
                    f"kubernetes.{name} is {getattr(self, name)}; it must be at least 1: pods run not as root"
                )
        for variable, reference in self.secrets.items():
            if not _SECRET.fullmatch(reference) or not _VARIABLE.fullmatch(variable):
                raise ValueError(f'kubernetes.secrets: {variable} = {reference!r}; write VARIABLE = "SECRET/KEY"')
        for name in self.resources:
            if "/" not in name:
                raise ValueError(f'kubernetes.resources: {name!r} is none of a device; write as "rdma/ib" = "1"')
        if self.runs and volume_of(self.runs, read_volumes(self.volumes)) is None:
            raise ValueError(f"kubernetes.runs is {self.runs}, which lies on no volume; see kubernetes.volumes")


@dataclass(frozen=True)
class SkyPilot:
    """Table [skypilot]; "" leaves a choice to SkyPilot.

    infra        as aws, aws/us-east-1, k8s/CONTEXT
    accelerator  name of a GPU, as H100; the job says how many
    image        that the nodes run
    setup        bash commands that make earlybird ready where no image has it
    mounts       FOLDER = "MODE:SOURCE": where data and runs lie; mount and cached leave it in its bucket (runs want
                 cached: they rename files), copy takes it to the node's disk, volume is one of SkyPilot's volumes
    runs         folder of the nodes for the run folders that lie in no mount: RUNS/NAME, or "" for none
    secrets      names of variables that are read where the job is submitted, and shown nowhere
    """

    infra: str = ""
    accelerator: str = ""
    image: str = ""
    setup: str = ""
    use_spot: bool = False
    runs: str = ""
    mounts: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for folder, source in self.mounts.items():
            if not re.fullmatch(r"(mount|cached|copy|volume):[^\s$]+", source) or not folder.startswith("/"):
                raise ValueError(
                    f'skypilot.mounts: {folder} = {source!r}; write "/FOLDER" = "MODE:SOURCE", the mode being mount, '
                    f"cached, copy or volume"
                )
        for name in self.secrets:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"skypilot.secrets has {name!r}, no name of a variable; secrets themselves stay out")


@dataclass(frozen=True)
class Site:
    """The whole profile.

    python       that the nodes run, with earlybird installed; "": the one that submits, python3 in a container
    environment  variables of every job, such as NCCL's
    """

    python: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: Ports = field(default_factory=Ports)
    slurm: Slurm = field(default_factory=Slurm)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)
    skypilot: SkyPilot = field(default_factory=SkyPilot)


def read_site(given: str = "") -> Site:
    """The profile of --site: a file, or NAME for ~/.config/earlybird/NAME.toml; "" is EARLYBIRD_SITE, else site.toml
    there if it is there, else all defaults. ValueError in one line for what cannot be read or has no effect."""
    asked = given or os.environ.get("EARLYBIRD_SITE", "")
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "earlybird"
    path = Path(asked) if "/" in asked or asked.endswith(".toml") else folder / f"{asked or 'site'}.toml"
    if not asked and not path.exists():
        return Site()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--site {path}: {error.strerror}; give a TOML file or the name of one in {folder}") from None
    except ValueError as error:
        raise ValueError(f"--site {path} is no TOML: {error}") from None
    try:
        return site_from(values)
    except ValueError as error:
        raise ValueError(f"--site {path}: {error}") from None


def site_from(values: dict[str, Any]) -> Site:
    """A profile from plain values; ValueError naming an unknown key, with the nearest known one, or a wrong type."""
    return typing.cast(Site, _built(Site, values, ""))


def _built(kind: type, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            meant = f"; did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(hints)}"
            raise ValueError(f"unknown key {prefix}{name}{meant}")
        read[name] = _value(f"{prefix}{name}", hints[name], value)
    return kind(**read)


def _value(name: str, hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return _built(typing.cast(type, hint), value, f"{name}.")
        raise ValueError(f"{name} is {value!r}; it must be a table, [{name}]")
    if origin is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f'{name} is {value!r}; it must be a list of strings, ["a", "b"]')
    if origin is not None:  # Mapping[str, str]
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return dict(value)
        raise ValueError(f'{name} is {value!r}; it must be a table of strings, NAME = "value"')
    if type(value) is not hint:
        raise ValueError(f"{name} is {value!r}; it must be {_KINDS[hint]}")
    return value
