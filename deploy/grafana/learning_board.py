"""Dashboard *Learning*: what the exits and the sample weights of one run are worth."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import Panel, bars, curve, lines, rows, start

RUN = 'run=~"$run"'
EXIT = f'{RUN},exit=~"$exit"'
VAL, TRAIN = (f'{EXIT},split="{split}"' for split in ("val", "train"))
GAIN = f"run_exit_split:earlybird_exit_gain:difference{{{VAL}}}"
EASY, HARD = (f"earlybird_sample_weight_{part}{{{EXIT}}}" for part in ("easy", "hard"))


def learning_board() -> Dashboard:
    board = start("Learning", "earlybird-learning", "The exits and the sample weights of one run.", of_one_run=True)
    sections = {"Anytime": _anytime(), "Sample weights": _weights(), "Training against validation": _splits()}
    for title, panels in sections.items():
        board.with_row(Row(title))
        for panel in panels:
            board.with_panel(panel)
    return board


def _anytime() -> list[Panel]:
    return [
        curve(
            "Anytime curve now",
            (f"max by (exit) (earlybird_exit_mul_adds{{{RUN}}})", "multiply-adds"),
            (f'max by (exit) (earlybird_exit_accuracy_ratio{{{RUN},split="val"}})', "accuracy"),
            "Top-1 of every exit on the validation images against what an image costs that leaves there.",
            by="exit",
            units=("short", "percentunit"),
        ),
        rows(
            "Exits now",
            [
                (f"max by (exit) (earlybird_exit_mul_adds{{{EXIT}}})", "multiply-adds", "short"),
                (f"max by (exit) (earlybird_exit_accuracy_ratio{{{VAL}}})", "accuracy, validation", "percentunit"),
                (f"max by (exit) (earlybird_exit_accuracy_ratio{{{TRAIN}}})", "accuracy, training", "percentunit"),
                (f"max by (exit) (earlybird_exit_loss{{{VAL}}})", "loss, validation", "none"),
                (f"max by (exit) (earlybird_exit_loss{{{TRAIN}}})", "loss, training", "none"),
                (f"max by (exit) ({GAIN})", "gain on the exit before", "percentunit"),
            ],
            "The newest figures.",
            by="exit",
            width=12,
        ),
        lines(
            "Exit gains, validation",
            "percentunit",
            [(GAIN, "exit {{exit}}")],
            "Accuracy of an exit minus that of the exit before it; an alert under -2 points.",
        ),
        bars(
            "Exit gains now, validation",
            "percentunit",
            [(f"max by (exit) ({GAIN})", "exit {{exit}}")],
            "What the operations after the exit before it are worth.",
            width=12,
        ),
    ]


def _weights() -> list[Panel]:
    return [
        bars(
            "Weight of easy samples now",
            "short",
            [(f"max by (exit) ({EASY})", "exit {{exit}}")],
            "Mean over the half of the samples with the lower loss at that exit.",
        ),
        bars(
            "Weight of hard samples now",
            "short",
            [(f"max by (exit) ({HARD})", "exit {{exit}}")],
            "Mean over the half with the higher loss.",
        ),
        bars(
            "Easy minus hard now",
            "short",
            [(f"max by (exit) ({EASY} - {HARD})", "exit {{exit}}")],
            "Above 0 the exit is trained for easy samples, below for hard ones.",
        ),
        lines(
            "Weight of easy and of hard samples",
            "short",
            [(EASY, "exit {{exit}}, easy"), (HARD, "exit {{exit}}, hard")],
            "Means over the halves with the lower and the higher loss.",
        ),
        lines(
            "Spread of the weights",
            "short",
            [
                (
                    f'earlybird_sample_weight{{{EXIT},quantile="0.95"}}'
                    f' - on (run, rank, exit) earlybird_sample_weight{{{EXIT},quantile="0.05"}}',
                    "exit {{exit}}",
                )
            ],
            "95 % minus 5 % quantile; 0: the net is trained as if there were no weights.",
        ),
        lines(
            "Meta loss",
            "short",
            [(f"earlybird_meta_loss{{{RUN}}}", "meta loss")],
            "What the weight net lowers.",
            width=8,
        ),
        lines(
            "Learning rate of the weight net",
            "short",
            [(f"earlybird_weight_net_learning_rate{{{RUN}}}", "weight net")],
            "Falls to zero along a cosine.",
            width=8,
        ),
        lines(
            "Cost of a meta update",
            "s",
            [
                (
                    f"sum(rate(earlybird_meta_step_seconds_sum{{{RUN}}}[5m]))"
                    f" / (sum(rate(earlybird_meta_step_seconds_count{{{RUN}}}[5m])) > 0)",
                    "seconds",
                )
            ],
            "Mean of 5 minutes.",
            width=8,
        ),
    ]


def _splits() -> list[Panel]:
    accuracy, loss = "earlybird_exit_accuracy_ratio", "earlybird_exit_loss"
    return [
        lines(
            "Accuracy, training minus validation",
            "percentunit",
            [(f"{accuracy}{{{TRAIN}}} - on (run, rank, exit) {accuracy}{{{VAL}}}", "exit {{exit}}")],
            "Training images are augmented, validation images are not: it may well be negative.",
        ),
        lines(
            "Loss, validation minus training",
            "short",
            [(f"{loss}{{{VAL}}} - on (run, rank, exit) {loss}{{{TRAIN}}}", "exit {{exit}}")],
            "Where it grows while the training loss falls, the net learns its images by heart.",
        ),
    ]
