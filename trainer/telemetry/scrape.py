"""What a run's metrics endpoint says, read as Prometheus would."""

from __future__ import annotations

import ssl
import urllib.request
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "earlybird_"
SECONDS = 5.0  # that an answer may take


@dataclass(frozen=True)
class Scrape:
    """The samples of one answer: {name without prefix: {labels: value}}, labels sorted by name."""

    samples: dict[str, dict[tuple[tuple[str, str], ...], float]]

    def value(self, name: str, **labels: str) -> float | None:
        """The first sample that has these labels, if there is one."""
        for found, value in self.samples.get(name, {}).items():
            if labels.items() <= dict(found).items():
                return value
        return None

    def total(self, name: str) -> float:
        """Sum over all its samples; 0 without any."""
        return sum(self.samples.get(name, {}).values())

    def label(self, name: str, label: str) -> str:
        """A label of its first sample; "" without one."""
        return dict(next(iter(self.samples.get(name, {})), ())).get(label, "")

    def exits(self) -> list[int]:
        found = {dict(labels).get("exit") for labels in self.samples.get("exit_loss", {})}
        return sorted(int(exit_) for exit_ in found if exit_)

    def as_row(self) -> dict[str, Any]:
        """Plain values for programs; what the run has not told yet is None."""
        exits: list[dict[str, Any]] = [
            {"exit": k}
            | {
                f"{split}_{name}": self.value(metric, exit=str(k), split=split)
                for split in ("train", "val")
                for name, metric in (("top1", "exit_accuracy_ratio"), ("loss", "exit_loss"))
            }
            for k in self.exits()
        ]
        names = (
            "iteration",
            "iterations_planned",
            "epoch",
            "eta_seconds",
            "images_per_second",
            "learning_rate",
            "meta_loss",
            "goodput_ratio",
            "checkpoint_age_seconds",
            "ranks",
        )
        run = {"run": self.label("build_info", "run"), "recipe": self.label("build_info", "recipe")}
        return run | {name: self.value(name) for name in names} | {"exits": exits}


def scrape(url: str, ca: str = "") -> Scrape:
    """One answer of the endpoint at `url`. OSError where there is none, ValueError where it is no run's.

    ca  PEM file of the authority that signed the endpoint's certificate; "" for those the system trusts
    """
    context = ssl.create_default_context(cafile=ca or None) if url.startswith("https://") else None
    with urllib.request.urlopen(url, timeout=SECONDS, context=context) as answer:
        text = answer.read().decode(errors="replace")
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(PREFIX):
                    series = samples.setdefault(sample.name.removeprefix(PREFIX), {})
                    series[tuple(sorted(sample.labels.items()))] = sample.value
    except ValueError:
        samples = {}
    if "build_info" not in samples:
        raise ValueError(f"{url} answers, but not with a run's metrics; give the address that train -v logs")
    return Scrape(samples)
