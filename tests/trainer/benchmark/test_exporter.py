"""The benchmark of the endpoint runs the real loop, scraped and not."""

from __future__ import annotations

import dataclasses
import math
import urllib.request
from typing import Any

import pytest

from trainer.benchmark.exporter import benchmark_exporter
from trainer.learning.meta_gradient import MetaConfig
from trainer.models.config import ModelConfig
from trainer.recipes.demo import demo
from trainer.telemetry import prometheus


def test_both_sides_are_the_same_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint answers in one block of each round and in no other; blocks hold whole meta intervals."""
    listened: list[str] = []
    closing = prometheus.Exporter.close

    def close(exporter: Any) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=10) as answer:
            listened.append(answer.read().decode())
        closing(exporter)

    monkeypatch.setattr(prometheus.Exporter, "close", close)
    model = ModelConfig(num_exits=2, num_classes=0, first_channels=8, growth=4, classifier_channels=16)
    config = dataclasses.replace(demo(), recipe="demo", model=model, meta=MetaConfig(interval=3))
    found = benchmark_exporter(config, num_images=8, rounds=4, seconds=0.01, every=0.05)
    assert found["iterations"] % 3 == 0
    blocks = listened[1:]  # the first one only looked for a free port
    assert len(blocks) == 4
    seen = [float(text.partition("\nearlybird_iterations_total{")[2].split()[1]) for text in blocks]
    assert seen == sorted(set(seen)), "it trains on between"
    assert [row["side"] for row in found["rows"]] == ["off", "on"]
    assert all(row["p20"] <= row["images_per_second"] <= row["p80"] for row in found["rows"])
    assert math.isfinite(found["change"] + found["change_error"] + found["cpu_change"])
    assert 0 < found["scrape_seconds"] < 1
    assert found["scrape_bytes"] == pytest.approx(len(blocks[-1]), rel=0.2)


def test_a_batch_of_no_two_halves_is_refused() -> None:
    with pytest.raises(ValueError, match="--batch is 3"):
        benchmark_exporter(demo(), num_images=3)
