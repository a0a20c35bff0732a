"""Dashboard *Fleet*: all runs, all ranks, all GPUs."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import bad_above, bars, board, heat, lines, rows

RUN = 'run=~"$run"'
RANK = 'run=~"$run", rank=~"$rank"'
SERIES = "{{run}} rank {{rank}}"
GPU = "{{Hostname}} GPU {{gpu}}"


def fleet() -> Dashboard:
    """The dashboard's builder."""
    runs = [
        rows(
            "All runs",
            "Every run that is scraped now.",
            [
                (f'max by (run, recipe, version, torch, device) (earlybird_build_info{{{RUN}, rank="0"}})', "up"),
                (f"max by (run) (earlybird_ranks{{{RUN}}})", "ranks"),
                (f"max by (run) (earlybird_iteration{{{RUN}}} / earlybird_iterations_planned{{{RUN}}})", "done"),
                (f"max by (run) (earlybird_eta_seconds{{{RUN}}})", "left"),
                (f"max by (run) (earlybird_images_per_second{{{RUN}}})", "images/s"),
                (f"max by (run) (earlybird_goodput_ratio{{{RUN}}})", "goodput"),
            ],
            {"done": "percentunit", "left": "s", "images/s": "short", "goodput": "percentunit"},
            hidden=("Value #A",),
        ),
        lines(
            "Images per second by run",
            "Of wall time, over all ranks.",
            [(f"run:earlybird_images:rate5m{{{RUN}}}", "{{run}}")],
            whole=True,
        ),
        lines(
            "Goodput of the last hour",
            "Share of the wall time that trained what is still part of the net.",
            [(f"run:earlybird_goodput:ratio1h{{{RUN}}}", "{{run}}")],
            "percentunit",
            limit=0.9,
        ),
        lines(
            "Iterations per second by run",
            "Each is two updates of the backbone.",
            [(f"sum by (run) (rate(earlybird_iterations_total{{{RUN}}}[5m]))", "{{run}}")],
            whole=True,
        ),
    ]
    firing = 'ALERTS{alertname=~"Earlybird.*", alertstate="firing"}'
    alerts = [
        lines(
            "Firing alerts",
            "How many, by name; empty is good.",
            [(f"sum by (alertname, run) ({firing})", "{{alertname}} {{run}}")],
            width=12,
            stacked=True,
        ),
        lines(
            "Ranks that answer",
            "Share of the targets of each run that could be scraped.",
            [(f'avg by (run) (up{{job="earlybird", {RUN}}})', "{{run}}")],
            "percentunit",
            width=12,
            whole=True,
        ),
    ]
    straggling = f"run_rank:earlybird_own_work:ratio_to_median5m{{{RANK}}}"
    ranks = [
        heat(
            "Ranks as a heat map",
            "Own work of each rank (time of an iteration without waiting in collectives) over its run's median: red is "
            "a straggler, all others wait for it.",
            (straggling, SERIES),
            "percentunit",
            0.8,
            1.5,
        ),
        bars(
            "Slowest ranks",
            "Own work over the median of the run. From 1.3 on an alert comes.",
            (f"topk(10, {straggling})", SERIES),
            "percentunit",
            colors=bad_above(1.3),
        ),
        lines(
            "Time in collectives",
            "Share of the time of an iteration; the slowest rank shows the least.",
            [
                (
                    f"sum by (run, rank) (rate(earlybird_collective_seconds_total{{{RANK}}}[5m])) / "
                    f"(sum by (run, rank) (rate(earlybird_step_seconds_sum{{{RANK}}}[5m])) > 0)",
                    SERIES,
                )
            ],
            "percentunit",
            whole=True,
        ),
        lines(
            "Median time of an iteration",
            "Of the last 101; five times as long without one is a stall.",
            [(f"max by (run, rank) (earlybird_step_median_seconds{{{RANK}}})", SERIES)],
            "s",
            whole=True,
        ),
        lines(
            "Waiting for images",
            "Share of the training time in which a rank waits for its loader.",
            [(f"run_rank:earlybird_data_wait:ratio5m{{{RANK}}}", SERIES)],
            "percentunit",
            limit=0.1,
            whole=True,
        ),
        lines(
            "Age of the processes",
            "A drop to 0 is a restart.",
            [(f"time() - max by (run, rank) (earlybird_start_timestamp_seconds{{{RANK}}})", SERIES)],
            "s",
        ),
        lines(
            "Memory of the processes",
            "Resident.",
            [(f"max by (run, rank) (earlybird_host_memory_bytes{{{RANK}}})", SERIES)],
            "bytes",
            whole=True,
        ),
    ]
    used, size = (f"earlybird_gpu_memory_{what}_bytes{{{RANK}}}" for what in ("used", "size"))
    retries = f"increase(earlybird_gpu_allocation_retries_total{{{RANK}}}[15m])"
    gpus = [
        lines(title, about, [(expr, legend)], unit, whole=True)
        for title, about, expr, legend, unit in (
            (
                "GPU utilisation",
                "Share of the time in which a kernel ran, by NVML.",
                f"earlybird_gpu_utilization_ratio{{{RANK}}}",
                SERIES,
                "percentunit",
            ),
            ("GPU memory in use", "Of the whole GPU, by NVML.", f"{used} / {size}", SERIES, "percentunit"),
            (
                "GPU memory held by the allocator",
                "Of this process.",
                f"earlybird_gpu_memory_reserved_bytes{{{RANK}}}",
                SERIES,
                "bytes",
            ),
            (
                "GPU allocation retries",
                "Allocations that had to free cached memory first: slow, and the last thing before memory is out.",
                retries,
                SERIES,
                "short",
            ),
            (
                "Tensor cores at work",
                "Share of the cycles, by DCGM.",
                "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
                GPU,
                "percentunit",
            ),
            ("Image decoder at work", "By DCGM.", "DCGM_FI_DEV_DEC_UTIL", GPU, "percent"),
            ("GPU power", "By DCGM.", "DCGM_FI_DEV_POWER_USAGE", GPU, "watt"),
            ("GPU temperature", "By DCGM.", "DCGM_FI_DEV_GPU_TEMP", GPU, "celsius"),
            (
                "GPU errors",
                "Code of the last XID error, 0 without one; by DCGM.",
                "DCGM_FI_DEV_XID_ERRORS",
                GPU,
                "short",
            ),
        )
    ]
    return board(
        "earlybird-fleet",
        "earlybird: Fleet",
        "All runs, their ranks and their GPUs.",
        {"Runs": runs, "Alerts": alerts, "Ranks": ranks, "GPUs": gpus},
        variables=("run", "rank"),
        many_runs=True,
    )
