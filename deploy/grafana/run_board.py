"""Dashboard *Run*: how one run goes now, and where its time went."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import Panel, bars, lines, number, start

RUN = 'run=~"$run"'
RANK = f'{RUN},rank=~"$rank"'
VAL, TRAIN = (f'{RUN},exit=~"$exit",split="{split}"' for split in ("val", "train"))
EXIT = f'{RUN},exit=~"$exit"'


def run_board() -> Dashboard:
    board = start("Run", "earlybird-run", "One run: speed, learning, and where its time went.", of_one_run=True)
    sections = {
        "Now": _now(),
        "Speed": _speed(),
        "Learning": _learning(),
        "Where the time went": _time(),
        "Trouble": _trouble(),
    }
    for title, panels in sections.items():
        board.with_row(Row(title))
        for panel in panels:
            board.with_panel(panel)
    return board


def _now() -> list[Panel]:
    return [
        number("Images/s", "short", f"max(earlybird_images_per_second{{{RUN}}})", "Of the last log window, all ranks."),
        number(
            "Against usual",
            "percentunit",
            f"max(run:earlybird_trained_images:rate5m{{{RUN}}}) / max(run:earlybird_trained_images:median30m{{{RUN}}})",
            "Images per second of training time, against their median of 30 minutes; an alert under 0.8.",
            below=0.8,
        ),
        number(
            "Progress",
            "percentunit",
            f"max(earlybird_iteration{{{RUN}}}) / max(earlybird_iterations_planned{{{RUN}}})",
            "Iterations done of those planned.",
        ),
        number("Time left", "s", f"max(earlybird_eta_seconds{{{RUN}}})", "At the present pace, without evaluations."),
        number("Epoch", "none", f"max(earlybird_epoch{{{RUN}}})", "Passes over the training images."),
        number(
            "Goodput",
            "percentunit",
            f"max(earlybird_goodput_ratio{{{RUN}}})",
            "Share of the whole run's wall time that trained what is still part of the net.",
            below=0.9,
        ),
        number(
            "Best exit",
            "percentunit",
            f'max(earlybird_exit_accuracy_ratio{{{RUN},split="val"}})',
            "Top-1 of the best exit at the last evaluation.",
        ),
        number(
            "Since the last step",
            "s",
            f"max(timestamp(earlybird_last_step_timestamp_seconds{{{RUN}}})"
            f" - earlybird_last_step_timestamp_seconds{{{RUN}}})",
            "Of the rank that waits longest; an alert where it is 5 times the median and a minute.",
        ),
    ]


def _percentile(share: float, metric: str) -> tuple[str, str]:
    """Of a histogram's seconds, over the chosen ranks."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{RANK}}}[$__rate_interval]))"
    return f"histogram_quantile({share}, {buckets})", f"p{100 * share:.0f}"


def _speed() -> list[Panel]:
    return [
        lines(
            "Images per second",
            "short",
            [
                (f"run:earlybird_images:rate5m{{{RUN}}}", "of wall time"),
                (f"run:earlybird_trained_images:rate5m{{{RUN}}}", "of training time"),
                (f"run:earlybird_trained_images:median30m{{{RUN}}}", "of training time, median of 30 min"),
            ],
            "Training time leaves evaluations and checkpoints out.",
        ),
        lines(
            "Images per second by rank",
            "short",
            [(f"run_rank:earlybird_images:rate5m{{{RANK}}}", "rank {{rank}}")],
            "Each rank's own, of wall time.",
        ),
        lines(
            "Time of an iteration",
            "s",
            [_percentile(share, "earlybird_step_seconds") for share in (0.5, 0.95, 0.99)],
            "Two updates of the backbone, the wait for the batch included.",
        ),
        lines(
            "Time of a meta update",
            "s",
            [_percentile(share, "earlybird_meta_step_seconds") for share in (0.5, 0.95)],
            "One update of the weight net, mean of its log window.",
        ),
        lines(
            "Waiting for images",
            "percentunit",
            [(f"run_rank:earlybird_data_wait:ratio5m{{{RANK}}}", "rank {{rank}}")],
            "Share of the training time; an alert from 10 %.",
        ),
        lines(
            "Iterations per second",
            "short",
            [(f"sum(rate(earlybird_iterations_total{{{RUN}}}[5m]))", "iterations/s")],
            "Of wall time.",
        ),
    ]


def _learning() -> list[Panel]:
    return [
        lines(
            "Accuracy by exit, validation",
            "percentunit",
            [(f"earlybird_exit_accuracy_ratio{{{VAL}}}", "exit {{exit}}")],
            "Top-1 of each exit on all validation images.",
        ),
        lines(
            "Accuracy by exit, training",
            "percentunit",
            [(f"earlybird_exit_accuracy_ratio{{{TRAIN}}}", "exit {{exit}}")],
            "Top-1 of the last log window.",
        ),
        lines(
            "Loss by exit",
            "short",
            [
                (f"earlybird_exit_loss{{{TRAIN}}}", "exit {{exit}}, training"),
                (f"earlybird_exit_loss{{{VAL}}}", "exit {{exit}}, validation"),
            ],
            "Cross-entropy in nats.",
        ),
        lines(
            "Sample weights by exit",
            "short",
            [(f"earlybird_sample_weight{{{EXIT}}}", "exit {{exit}}, quantile {{quantile}}")],
            "5, 50, 95 % quantiles of the last half batch. All at the bounds: the weight net tells no samples apart.",
        ),
        lines("Meta loss", "short", [(f"earlybird_meta_loss{{{RUN}}}", "meta loss")], "What the weight net lowers."),
        lines(
            "Learning rates",
            "short",
            [
                (f"earlybird_learning_rate{{{RUN}}}", "backbone"),
                (f"earlybird_weight_net_learning_rate{{{RUN}}}", "weight net"),
            ],
            "Both fall to zero along one cosine.",
            log=True,
        ),
    ]


def _time() -> list[Panel]:
    return [
        lines(
            "Badput by cause",
            "s",
            [(f"sum by (cause) (earlybird_badput_seconds_total{{{RUN}}})", "{{cause}}")],
            "Wall time of the whole run, over its restarts, that did not train.",
            stacked=True,
        ),
        lines(
            "Goodput over time",
            "percentunit",
            [
                (f"earlybird_goodput_ratio{{{RUN}}}", "whole run"),
                (f"run:earlybird_goodput:ratio1h{{{RUN}}}", "last hour"),
            ],
            "An alert where the last hour's is under 0.9.",
        ),
        lines(
            "Age of the newest checkpoint",
            "s",
            [
                (f"earlybird_checkpoint_age_seconds{{{RUN}}}", "age"),
                (f"2 * earlybird_checkpoint_interval_seconds{{{RUN}}}", "alert"),
            ],
            "What a crash now would lose.",
        ),
        lines(
            "Writing a checkpoint",
            "s",
            [(f"earlybird_checkpoint_write_seconds{{{RUN}}}", "seconds")],
            "Behind the training's back; it must stay below what the cluster leaves a run that it stops.",
        ),
    ]


def _trouble() -> list[Panel]:
    return [
        bars(
            "Updates left out",
            "short",
            [(f"sum by (reason) (earlybird_skipped_steps_total{{{RUN}}})", "{{reason}}")],
            "Since this process started; fp16_overflow is how the loss scale is found.",
        ),
        bars(
            "Images that cannot be read",
            "short",
            [(f"sum by (reason) (earlybird_bad_samples_total{{{RUN}}})", "{{reason}}")],
            "Left out at the start, or replaced while training.",
        ),
        bars(
            "Stalls, rollbacks, failed checkpoints",
            "short",
            [
                (f"sum(earlybird_stalls_total{{{RUN}}})", "stalls"),
                (f"sum(earlybird_rollbacks_total{{{RUN}}})", "rollbacks"),
                (f"sum(earlybird_checkpoint_failures_total{{{RUN}}})", "failed checkpoints"),
            ],
            "Since this process started.",
        ),
    ]
