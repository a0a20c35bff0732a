"""Dashboard *Learning*: what each exit is worth, and what the sample weights do."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, curve, lines

RUN = 'run=~"$run"'
EXIT = 'run=~"$run", exit=~"$exit"'


def _by_exit(metric: str, more: str = "") -> str:
    return f"max by (exit) ({metric}{{{EXIT}{more}}})"


def _accuracy(split: str) -> str:
    return _by_exit("earlybird_exit_accuracy_ratio", f', split="{split}"')


def _gain(split: str) -> str:
    return _by_exit("run_exit_split:earlybird_exit_gain:difference", f', split="{split}"')


def learning() -> Dashboard:
    """The dashboard's builder."""
    cost = (_by_exit("earlybird_exit_mul_adds"), "Mul-Adds")
    easy, hard = _by_exit("earlybird_sample_weight_easy"), _by_exit("earlybird_sample_weight_hard")
    high, low = (_by_exit("earlybird_sample_weight", f', quantile="{q}"') for q in ("0.95", "0.05"))
    exits = [
        curve(
            "Anytime curve, now",
            "Top-1 on the validation images over the cost of an image that leaves at each exit.",
            cost,
            (_accuracy("val"), "top-1"),
            "exit",
            ("short", "percentunit"),
        ),
        lines(
            "Gain of each exit, val",
            "Accuracy of an exit minus that of the one before it. Below 0 the exit costs and does not pay; below -2 "
            "points an alert comes.",
            [(_gain("val"), "exit {{exit}}")],
            "percentunit",
            width=12,
            limit=-0.02,
        ),
        lines(
            "Gain of each exit, train",
            "The same on augmented training images.",
            [(_gain("train"), "exit {{exit}}")],
            "percentunit",
        ),
        lines(
            "Accuracy on training images minus validation",
            "Rising: the net learns by heart.",
            [(f"{_accuracy('train')} - {_accuracy('val')}", "exit {{exit}}")],
            "percentunit",
        ),
        lines(
            "Loss of each exit, train and val",
            "In nats.",
            [(_by_exit("earlybird_exit_loss", f', split="{s}"'), f"exit {{{{exit}}}} {s}") for s in ("train", "val")],
        ),
    ]
    weights = [
        lines(
            "Weight of easy samples",
            "Mean weight of the half of the last half batch that has the lower loss at this exit.",
            [(easy, "exit {{exit}}")],
        ),
        lines("Weight of hard samples", "Of the half with the higher loss.", [(hard, "exit {{exit}}")]),
        lines(
            "Hard over easy",
            "Above 1 an exit learns more from hard samples. Late exits should lie above early ones.",
            [(f"{hard} / {easy}", "exit {{exit}}")],
        ),
        lines(
            "Spread of the weights",
            "95 % quantile minus 5 % quantile: near 0 the weight net tells no samples apart.",
            [(f"{high} - {low}", "exit {{exit}}")],
            whole=True,
        ),
        lines(
            "Meta loss",
            "Loss of the meta halves behind the lookahead step.",
            [(f"max(earlybird_meta_loss{{{RUN}}})", "meta loss")],
        ),
        lines(
            "Time for learning weights",
            "Share of the training time that meta updates take.",
            [
                (
                    f"sum(rate(earlybird_meta_step_seconds_sum{{{RUN}}}[5m])) / "
                    f"(sum(rate(earlybird_step_seconds_sum{{{RUN}}}[5m])) > 0)",
                    "share",
                )
            ],
            "percentunit",
            whole=True,
        ),
    ]
    return board(
        "earlybird-learning",
        "earlybird: Learning",
        "What each exit is worth, and what the sample weights do.",
        {"Exits": exits, "Sample weights": weights},
        variables=("run", "exit"),
    )
