"""What the published schemas say of an object: Kubernetes' own, Kubeflow's models, the CRDs where they are at hand."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from kubeflow_trainer_api import models

OLDEST, NEWEST = "1.30", "1.37"  # releases of Kubernetes that the manifests are held against
MODELS = {
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "JobSet": models.JobsetV1alpha2JobSet,
}


def check_core(thing: dict[str, Any]) -> None:
    """A built-in object against Kubernetes' schemas, unknown fields refused."""
    for release in (OLDEST, NEWEST):
        kubernetes_validate.validate(thing, release, strict=True)


def jobs_of(thing: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The built-in Jobs that a JobSet, or the set of a runtime, makes."""
    spec = thing["spec"]["template"]["spec"] if thing["kind"] == "TrainingRuntime" else thing["spec"]
    for part in spec["replicatedJobs"]:
        yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": part["name"]}, **part["template"]}


def check_model(thing: dict[str, Any]) -> None:
    """Kubeflow's model takes every field: what it does not know it would drop."""
    model = MODELS[thing["kind"]].from_dict(thing)
    lost = list(_lost(thing, json.loads(model.to_json()), thing["kind"]))
    assert not lost, lost


def _lost(given: Any, kept: Any, path: str) -> Iterator[str]:
    """Where `kept`, which has defaults besides, differs from what was given."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from _lost(value, kept.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif given != kept:
        yield path


class Crds:
    """The CRDs of a folder as strict JSON schemas, with their rules in CEL."""

    def __init__(self, folder: Path) -> None:
        self._schemas = {
            (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): version["schema"][
                "openAPIV3Schema"
            ]
            for path in folder.glob("*.yaml")
            for crd in yaml.load_all(path.read_text(), yaml.CSafeLoader)  # the plain one takes 5 s
            if crd
            for version in crd["spec"]["versions"]
        }

    def check(self, thing: dict[str, Any]) -> None:
        """AssertionError for a field that is unknown or of another type, or a rule that does not hold."""
        schema = self._schemas[thing["apiVersion"], thing["kind"]]
        strict = _strict(schema)
        strict["properties"]["metadata"] = {"type": "object"}
        errors = [error.message for error in jsonschema.Draft202012Validator(strict).iter_errors(thing)]
        assert not errors, errors
        for path, rule in _rules(schema):
            if "oldSelf" in rule:
                continue
            try:
                value = reduce(lambda inside, key: inside[key], path, thing)
            except KeyError:
                continue
            assert cel.evaluate(rule, {"self": value}) is True, (path, rule)


def _strict(schema: Any, closed: bool = True) -> Any:
    """openAPIV3Schema as JSON Schema that refuses unknown fields, as the API server does when asked to be strict."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _strict(part, closed) for name, part in value.items()}
        elif key in ("items", "not", "additionalProperties"):
            made[key] = _strict(value, closed)
        elif key in ("anyOf", "allOf", "oneOf"):
            made[key] = [_strict(part, False) for part in value]
        else:
            made[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if closed and schema.get("type") == "object" and "properties" in schema and not free:
        made["additionalProperties"] = False
    return made


def _rules(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield path, rule["rule"]
    for name, part in schema.get("properties", {}).items():
        yield from _rules(part, (*path, name))
