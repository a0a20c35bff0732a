"""Dashboard *Run*: one run, from "is it well?" down to why not."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import bad_above, bad_below, bars, board, lines, number

RUN = 'run=~"$run"'
RANK = 'run=~"$run", rank=~"$rank"'
EXIT = 'run=~"$run", exit=~"$exit"'
WINDOW = "[$__rate_interval]"
TRAINED = f"max(run:earlybird_trained_images:rate5m{{{RUN}}})"
USUAL = f"max(run:earlybird_trained_images:median30m{{{RUN}}})"


def _of_run(metric: str) -> str:
    return f"max({metric}{{{RUN}}})"


def _percentile(share: float) -> tuple[str, str]:
    buckets = f"sum by (le) (rate(earlybird_step_seconds_bucket{{{RANK}}}{WINDOW}))"
    return f"histogram_quantile({share}, {buckets})", f"p{100 * share:.0f}"


def _rise(metric: str, label: str) -> tuple[str, str]:
    return f"sum by ({label}) (increase({metric}{{{RUN}}}[$__range]))", f"{{{{{label}}}}}"


def run() -> Dashboard:
    """The dashboard's builder."""
    accuracy = f'max by (exit) (earlybird_exit_accuracy_ratio{{{RUN}, split="val"}})'
    last_exit = f"topk(1, max by (exit) (earlybird_exit_mul_adds{{{RUN}}}))"
    done = f"{_of_run('earlybird_iteration')} / {_of_run('earlybird_iterations_planned')}"
    silent = (
        f"timestamp(earlybird_last_step_timestamp_seconds{{{RUN}}}) - earlybird_last_step_timestamp_seconds{{{RUN}}}"
    )
    now = [
        number("Progress", "Share of the planned iterations that is done.", (done, "done"), "percentunit"),
        number(
            "Time left",
            "At the present pace, evaluations not counted.",
            (_of_run("earlybird_eta_seconds"), "left"),
            "s",
        ),
        number(
            "Images/s",
            "Of the last log window, over all ranks.",
            (_of_run("earlybird_images_per_second"), "images/s"),
        ),
        number(
            "Against usual",
            "Images per second of training time over the median of the last half hour.",
            (f"{TRAINED} / {USUAL}", "ratio"),
            "percentunit",
            colors=bad_below(0.8),
        ),
        number(
            "Last exit, val",
            "Top-1 accuracy of the last exit at the last evaluation.",
            (f"max({accuracy} and on (exit) {last_exit})", "top-1"),
            "percentunit",
            decimals=2,
        ),
        number(
            "Goodput",
            "Share of all wall time, restarts included, that trained what is still part of the net.",
            (_of_run("earlybird_goodput_ratio"), "goodput"),
            "percentunit",
            colors=bad_below(0.9),
        ),
        number(
            "Checkpoint age", "What a crash now would cost.", (_of_run("earlybird_checkpoint_age_seconds"), "age"), "s"
        ),
        number(
            "Silent for",
            "Time since the last iteration or evaluation batch, of the rank that has been silent longest.",
            (f"max({silent})", "silent"),
            "s",
            colors=bad_above(60),
        ),
    ]
    meta_seconds, meta_steps = (
        f"sum by (rank) (rate(earlybird_meta_step_seconds_{part}{{{RANK}}}{WINDOW}))" for part in ("sum", "count")
    )
    throughput = [
        lines(
            "Images per second, now against usual",
            "Of training time: evaluations and checkpoints do not count. Below the lowest line an alert comes.",
            [(TRAINED, "now"), (USUAL, "median of 30 min"), (f"0.8 * {USUAL}", "limit")],
            whole=True,
        ),
        lines(
            "Images per second by rank",
            "Of wall time: gaps are evaluations, checkpoints and stops.",
            [(f"run_rank:earlybird_images:rate5m{{{RANK}}}", "rank {{rank}}")],
            whole=True,
        ),
        lines(
            "Waiting for images",
            "Share of the training time in which a rank waits for its loader.",
            [(f"run_rank:earlybird_data_wait:ratio5m{{{RANK}}}", "rank {{rank}}")],
            "percentunit",
            limit=0.1,
            whole=True,
        ),
        lines(
            "Time of an iteration",
            "Percentiles over iterations and ranks. Those with a meta update take longer.",
            [_percentile(0.5), _percentile(0.95), _percentile(0.99)],
            "s",
            whole=True,
        ),
        lines(
            "Time of a meta update",
            "Mean; an iteration has two where the meta interval is 1.",
            [(f"{meta_seconds} / ({meta_steps} > 0)", "rank {{rank}}")],
            "s",
            whole=True,
        ),
        lines(
            "Epochs done",
            "Passes over the training images; a step back is a restart.",
            [(_of_run("earlybird_epoch"), "epochs")],
        ),
    ]
    by_exit = [
        lines(
            f"{what} by exit, {split}",
            about,
            [(f'max by (exit) ({metric}{{{EXIT}, split="{split}"}})', "exit {{exit}}")],
            unit,
            width=12,
        )
        for what, metric, unit in (
            ("Accuracy", "earlybird_exit_accuracy_ratio", "percentunit"),
            ("Loss", "earlybird_exit_loss", "short"),
        )
        for split, about in (
            ("val", "On all validation images, at each evaluation; purple marks are epochs."),
            ("train", "On the augmented images of each log window."),
        )
    ]
    learning = [
        *by_exit,
        lines(
            "Learning rates",
            "Both follow one cosine.",
            [
                (_of_run("earlybird_learning_rate"), "backbone"),
                (_of_run("earlybird_weight_net_learning_rate"), "weight net"),
            ],
            "sci",
            log=True,
            width=12,
        ),
        lines(
            "Meta loss",
            "What the weight net was last moved by.",
            [(_of_run("earlybird_meta_loss"), "meta loss")],
            width=12,
        ),
        lines(
            "Sample weights, exit $exit",
            "5 %, 50 % and 95 % quantiles of the last half batch. 1 is unweighted.",
            [
                (f'max by (quantile) (earlybird_sample_weight{{{EXIT}, quantile="{q}"}})', name)
                for q, name in (("0.95", "95 %"), ("0.5", "median"), ("0.05", "5 %"))
            ],
            band={"95 %": "5 %"},
            each="exit",
        ),
    ]
    time_spent = [
        lines(
            "Goodput over time",
            "Share of the wall time that trained what is still part of the net.",
            [
                (_of_run("run:earlybird_goodput:ratio1h"), "last hour"),
                (_of_run("earlybird_goodput_ratio"), "whole run"),
            ],
            "percentunit",
            limit=0.9,
        ),
        lines(
            "Badput by cause",
            "Share of the wall time that did not train.",
            [(f"sum by (cause) (rate(earlybird_badput_seconds_total{{{RUN}}}[15m]))", "{{cause}}")],
            "percentunit",
            stacked=True,
        ),
        bars(
            "Badput of the whole run",
            "Wall time that did not train, by cause, restarts included.",
            (f"sum by (cause) (earlybird_badput_seconds_total{{{RUN}}})", "{{cause}}"),
            "s",
        ),
    ]
    free = f"min(earlybird_disk_free_bytes{{{RUN}}} / earlybird_disk_size_bytes{{{RUN}}})"
    health = [
        lines(
            "Checkpoints",
            "Between two checkpoints the age rises to the interval; at twice the interval an alert comes.",
            [
                (_of_run("earlybird_checkpoint_age_seconds"), "age"),
                (_of_run("earlybird_checkpoint_interval_seconds"), "interval"),
                (_of_run("earlybird_checkpoint_write_seconds"), "writing took"),
            ],
            "s",
        ),
        lines("Disk free", "Where the run folder lies.", [(free, "free")], "percentunit", limit=0.1, whole=True),
        lines(
            "Memory of the process",
            "Resident; a line that only rises is a leak.",
            [(f"max by (rank) (earlybird_host_memory_bytes{{{RANK}}})", "rank {{rank}}")],
            "bytes",
            whole=True,
        ),
        bars(
            "Updates left out",
            "In the time shown, by reason; fp16_overflow is how the loss scale is found.",
            _rise("earlybird_skipped_steps_total", "reason"),
        ),
        bars("Unreadable images", "In the time shown, by reason.", _rise("earlybird_bad_samples_total", "reason")),
        bars("Stalls", "In the time shown, by what the run hung in.", _rise("earlybird_stalls_total", "cause")),
        lines(
            "Went back, or could not save",
            "Rollbacks to a checkpoint and checkpoints that could not be written, since the process started.",
            [
                (_of_run("earlybird_rollbacks_total"), "rollbacks"),
                (_of_run("earlybird_checkpoint_failures_total"), "failed checkpoints"),
            ],
            whole=True,
        ),
    ]
    return board(
        "earlybird-run",
        "earlybird: Run",
        "One run: is it well, how fast, what does it learn, where does its time go.",
        {"Now": now, "Throughput": throughput, "Learning": learning, "Time": time_spent, "Health": health},
        variables=("run", "rank", "exit"),
    )
