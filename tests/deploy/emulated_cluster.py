"""An emulated Kubernetes API that a real kubectl talks to: objects are kept, nothing runs.

`python emulated_cluster.py KIND ABSENT...`: nobody may create or list objects of that kind ("" for none), and the
absent kinds are not known. The address is printed; it serves until standard input closes. PUT /logs/POD sets what a pod
has printed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp.web
import kmock

RESOURCES = {
    "v1/nodes": "Node",
    "v1/persistentvolumeclaims": "PersistentVolumeClaim",
    "v1/persistentvolumes": "PersistentVolume",
    "v1/pods": "Pod",
    "jobset.x-k8s.io/v1alpha2/jobsets": "JobSet",
    "kueue.x-k8s.io/v1beta1/localqueues": "LocalQueue",
    "monitoring.coreos.com/v1/podmonitors": "PodMonitor",
    "scheduling.k8s.io/v1/priorityclasses": "PriorityClass",
    "trainer.kubeflow.org/v1alpha1/trainingruntimes": "TrainingRuntime",
    "trainer.kubeflow.org/v1alpha1/trainjobs": "TrainJob",
}
CLUSTER_WIDE = {"Node", "PersistentVolume", "PriorityClass"}
VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
CORE = [
    {
        "name": name.removeprefix("v1/"),
        "singularName": kind.lower(),
        "kind": kind,
        "namespaced": kind not in CLUSTER_WIDE,
        "verbs": sorted(VERBS),
    }
    for name, kind in RESOURCES.items()
    if name.startswith("v1/")
]


class Cluster(kmock.KubernetesEmulator):
    """kmock's emulator, and what kubectl asks beyond it: dry runs, lists with labels, logs, admission."""

    def serve(self, refused: str, absent: set[str]) -> None:
        self.refused, self.printed = refused, dict[str, str]()
        for resource, kind in RESOURCES.items():
            if kind not in absent:
                self.resources[resource] = kmock.ResourceInfo(
                    kind=kind,
                    singular=kind.lower(),
                    shortnames=set(),
                    categories=set(),
                    subresources={"log"} if kind == "Pod" else set(),
                    namespaced=kind not in CLUSTER_WIDE,
                    verbs=VERBS,
                )

    async def _handle(self, request: Any) -> aiohttp.web.StreamResponse:
        path, method = request.url.path, request.method.name
        if path.startswith("/logs/") and method == "PUT":
            self.printed[path.split("/")[-1]] = request.text
            return aiohttp.web.Response()
        if path.endswith("/log"):
            return aiohttp.web.Response(text=self.printed[path.split("/")[-2]])
        if path == "/api/v1":  # kmock names this group "/v1", which kubectl does not take for the core's
            return aiohttp.web.json_response({"kind": "APIResourceList", "groupVersion": "v1", "resources": CORE})
        if path.startswith("/openapi/v3"):
            return aiohttp.web.json_response(_openapi(path.removeprefix("/openapi/v3/")))
        if method == "POST" and request.data["kind"] == self.refused:
            return _failed(403, "Forbidden", f'admission webhook "checks" denied the request: no {self.refused} here')
        if method == "POST" and "dryRun" in request.params:
            return aiohttp.web.json_response(request.data)
        if request.action == kmock.action.LIST and request.resource.plural:
            if self.resources[request.resource].kind == self.refused:
                return _failed(403, "Forbidden", f"{request.resource.plural} is forbidden: user may not list them")
            return aiohttp.web.json_response(self._listed(request))
        try:
            return await super()._handle(request)
        except kmock.KubernetesNotFoundError:
            return _failed(404, "NotFound", f'"{path}" not found')
        except kmock.KubernetesError as error:
            return _failed(error.status, "AlreadyExists", f'"{request.data["metadata"]["name"]}" already exists')

    def _listed(self, request: Any) -> dict[str, Any]:
        wanted = dict(part.split("=") for part in request.params.get("labelSelector", "").split(",") if part)
        items = []
        for (resource, _, _), kept in self.objects.items():
            if resource == request.resource and not kept.deleted:
                labels = kept.raw["metadata"].get("labels", {})
                items += [kept.raw] if wanted.items() <= labels.items() else []
        kind = self.resources[request.resource].kind
        group = f"{request.resource.group}/".lstrip("/")
        return {
            "kind": f"{kind}List",
            "apiVersion": f"{group}{request.resource.version}",
            "metadata": {},
            "items": items,
        }


def _openapi(path: str) -> dict[str, Any]:
    """As much of the API's description as tells kubectl that the server itself validates fields."""
    versions = {name.rpartition("/")[0] for name in RESOURCES}
    prefixed = {("api/" if version == "v1" else "apis/") + version: version for version in versions}
    if path not in prefixed:
        return {"paths": {prefix: {"serverRelativeURL": f"/openapi/v3/{prefix}"} for prefix in prefixed}}
    group, _, version = prefixed[path].rpartition("/")
    parameters = [{"name": "fieldValidation", "in": "query"}]
    paths = {
        f"/{name}": {
            "patch": {
                "parameters": parameters,
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            }
        }
        for name, kind in RESOURCES.items()
        if name.rpartition("/")[0] == prefixed[path]
    }
    return {"openapi": "3.0.0", "info": {"title": "emulated", "version": "1"}, "paths": paths}


def _failed(code: int, reason: str, message: str) -> aiohttp.web.Response:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}}
    return aiohttp.web.json_response(status | {"reason": reason, "code": code, "message": message}, status=code)


async def main(refused: str, *absent: str) -> None:
    async with Cluster() as cluster:
        cluster.serve(refused, set(absent))
        async with kmock.Server(cluster) as server:
            print(json.dumps(str(server.url)), flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
