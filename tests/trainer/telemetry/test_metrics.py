from __future__ import annotations

import pytest

from trainer.telemetry.metrics import METRICS, MOST_LABEL_SETS, Histogram, Metrics


def test_names_follow_the_conventions() -> None:
    for metric in METRICS.values():
        assert metric.name.startswith("earlybird_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert (metric.unit == "s") == ("_seconds" in metric.name), metric.name
        assert metric.help
        assert not metric.help.endswith(".")


def test_labels_take_few_values() -> None:
    """Of a run (its exits), or from a fixed list; what is told once a process stands in build_info alone."""
    few = {"exit", "previous", "split", "cause", "reason", "quantile"}
    for name, metric in METRICS.items():
        if name != "build_info":
            assert set(metric.labels) <= few, metric.name


def test_a_label_that_grows_is_cut_off() -> None:
    metrics = Metrics()
    for number in range(MOST_LABEL_SETS + 50):
        metrics.add("bad_samples_total", 1, reason=f"reason {number}")
    metrics.add("bad_samples_total", 1, reason="reason 0")
    series = metrics.read()["bad_samples_total"]
    assert isinstance(series, dict)
    assert len(series) == MOST_LABEL_SETS + 1
    assert series[("other",)] == 50
    assert series[("reason 0",)] == 2


def test_values_and_observations() -> None:
    metrics = Metrics()
    metrics.set("meta_loss", 1.5)
    metrics.set("meta_loss", None)
    metrics.observe("step_seconds", 0.1, times=3)
    metrics.observe("step_seconds", 1e9)
    metrics.observe("step_seconds", 5.0, times=0)
    read = metrics.read()
    assert read["meta_loss"] == {(): 1.5}
    histogram = read["step_seconds"]
    assert isinstance(histogram, Histogram)
    assert (sum(histogram.counts), histogram.counts[4], histogram.counts[-1]) == (4, 3, 1)
    assert histogram.sum == pytest.approx(1e9 + 0.3)


def test_what_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        Metrics().set("images_per_hour", 1)
    with pytest.raises(AssertionError, match="takes the labels"):
        Metrics().set("exit_loss", 1.0)
