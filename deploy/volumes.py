"""Where a pod's data and runs lie: `/mount = "pvc:claim"` of a site's profile, as Kubernetes says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_FORM = re.compile(r"(?P<kind>pvc|hostPath|s3):(?P<what>[^:]+?)(?P<read_only>:ro)?")
OBJECT = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")  # RFC 1123, of Kubernetes' names; S3's buckets are named alike
HELP = 'write "pvc:CLAIM[/SUBPATH][:ro]", "hostPath:/FOLDER[:ro]" or "s3:BUCKET[/PREFIX]"'


@dataclass(frozen=True)
class Volume:
    """One volume of a pod.

    kind  pvc: a claim, or a folder in it | hostPath: a folder of the node | s3: a bucket, or what begins with a prefix
          in it, read through its CSI driver
    """

    name: str
    mount: str
    kind: str
    source: str
    path: str
    read_only: bool

    @property
    def mounted(self) -> dict[str, Any]:
        """Entry of a container's volumeMounts."""
        entry: dict[str, Any] = {"name": self.name, "mountPath": self.mount}
        if self.kind == "pvc" and self.path:
            entry["subPath"] = self.path
        return entry | ({"readOnly": True} if self.read_only else {})

    def claimed(self, job: str) -> dict[str, Any]:
        """Entry of a pod's volumes."""
        if self.kind == "hostPath":
            return {"name": self.name, "hostPath": {"path": self.source, "type": "Directory"}}
        claim = self.source if self.kind == "pvc" else f"{job}-{self.name}"
        return {"name": self.name, "persistentVolumeClaim": {"claimName": claim}}

    def objects(self, job: str, namespace: str, user: int, group: int) -> list[dict[str, Any]]:
        """What must exist beside the job: a bucket's volume and the job's claim of it."""
        if self.kind != "s3":
            return []
        name = f"{job}-{self.name}"
        options = ["read-only", "allow-other", f"uid={user}", f"gid={group}"]
        options += [f"prefix {self.path.rstrip('/')}/"] if self.path else []
        size = {"storage": "1Gi"}  # asked for by the API; a bucket has none
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/instance": job}},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadOnlyMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "mountOptions": options,
                "csi": {
                    "driver": "s3.csi.aws.com",
                    "volumeHandle": name,
                    "volumeAttributes": {"bucketName": self.source},
                },
            },
        }
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name} | ({"namespace": namespace} if namespace else {}),
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": size},
            },
        }
        return [volume, claim]


def read_volumes(volumes: Mapping[str, str]) -> tuple[Volume, ...]:
    """The volumes of a profile's table; ValueError in one line for one that is not written as HELP says."""
    read = []
    for index, (mount, text) in enumerate(volumes.items()):
        where = f"kubernetes.volumes: {mount} = {text!r}"
        form = _FORM.fullmatch(text)
        if form is None:
            raise ValueError(f"{where}; {HELP}")
        if not mount.startswith("/") or mount == "/" or ":" in mount or ".." in PurePosixPath(mount).parts:
            raise ValueError(f"{where}: the mount must be an absolute path, without a colon")
        kind, what = form["kind"], form["what"]
        source, _, path = (what, "", "") if kind == "hostPath" else what.partition("/")
        if kind == "hostPath" and not (source.startswith("/") and ".." not in PurePosixPath(source).parts):
            raise ValueError(f"{where}: a folder of the node begins with /")
        if kind != "hostPath" and not OBJECT.fullmatch(source):
            raise ValueError(f"{where}: {source!r} is no name; small letters, digits, hyphens and dots are")
        if kind == "pvc" and (path.startswith("/") or ".." in PurePosixPath(path).parts):
            raise ValueError(f"{where}: {path!r} must lead downwards in the claim")
        if kind == "s3" and re.search(r"\s", path):
            raise ValueError(f"{where}: mount options cannot hold the blank of a prefix")
        read.append(Volume(f"volume-{index}", mount, kind, source, path, kind == "s3" or bool(form["read_only"])))
    return tuple(read)


def volume_of(path: str, volumes: tuple[Volume, ...]) -> Volume | None:
    """The volume that `path` of a pod lies on, the deepest one; None where it is the image's own."""
    parts = PurePosixPath(path)
    on = [volume for volume in volumes if parts.is_relative_to(volume.mount)]
    return max(on, key=lambda volume: len(PurePosixPath(volume.mount).parts), default=None)
