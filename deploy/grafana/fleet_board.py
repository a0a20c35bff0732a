"""Dashboard *Fleet*: all runs beside each other, ranks as a heat map, stragglers, machines."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import Panel, heat, lines, rows, start

RUN = 'run=~"$run"'
RANK = f'{RUN},rank=~"$rank"'
NAME = "{{run}} rank {{rank}}"


def fleet_board() -> Dashboard:
    board = start("Fleet", "earlybird-fleet", "All runs, their ranks and their machines.", of_one_run=False)
    sections = {"Runs": _runs(), "Ranks": _ranks(), "Machines": _machines(), "GPUs": _gpus()}
    for title, panels in sections.items():
        board.with_row(Row(title))
        for panel in panels:
            board.with_panel(panel)
    return board


def _runs() -> list[Panel]:
    return [
        rows(
            "All runs",
            [
                (
                    f'max by (run, recipe, device, version, torch) (earlybird_build_info{{{RUN},rank="0"}})',
                    "answers",
                    "none",
                ),
                (f"max by (run) (earlybird_ranks{{{RUN}}})", "ranks", "none"),
                (f"max by (run) (earlybird_epoch{{{RUN}}})", "epoch", "none"),
                (f"max by (run) (earlybird_images_per_second{{{RUN}}})", "images/s", "short"),
                (f"max by (run) (earlybird_eta_seconds{{{RUN}}})", "time left", "s"),
                (
                    f'max by (run) (earlybird_exit_accuracy_ratio{{{RUN},split="val"}})',
                    "best exit, validation",
                    "percentunit",
                ),
                (f"max by (run) (earlybird_goodput_ratio{{{RUN}}})", "goodput", "percentunit"),
            ],
            "What runs now.",
            by="run",
            labels=("recipe", "device", "version", "torch"),
        ),
        lines(
            "Images per second",
            "short",
            [(f"run:earlybird_images:rate5m{{{RUN}}}", "{{run}}")],
            "Of wall time, all ranks.",
        ),
        lines(
            "Goodput of the last hour",
            "percentunit",
            [(f"run:earlybird_goodput:ratio1h{{{RUN}}}", "{{run}}")],
            "An alert under 0.9.",
        ),
    ]


def _ranks() -> list[Panel]:
    return [
        heat(
            "Own work of an iteration, by rank",
            "s",
            (f"run_rank:earlybird_own_work_seconds:mean5m{{{RANK}}}", NAME),
            "Time of an iteration without what the rank waited in collectives: the others wait for the darkest row.",
        ),
        lines(
            "Own work against the run's median",
            "short",
            [(f"run_rank:earlybird_own_work:ratio_to_median5m{{{RANK}}}", NAME)],
            "An alert from 1.3: all ranks wait for this one.",
        ),
        lines(
            "Time in collectives",
            "percentunit",
            [
                (
                    f"sum by (run, rank) (rate(earlybird_collective_seconds_total{{{RANK}}}[5m]))"
                    f" / (sum by (run, rank) (rate(earlybird_step_seconds_sum{{{RANK}}}[5m])) > 0)",
                    NAME,
                )
            ],
            "Share of the training time; the slowest rank has the least.",
        ),
        lines(
            "Waiting for images",
            "percentunit",
            [(f"run_rank:earlybird_data_wait:ratio5m{{{RANK}}}", NAME)],
            "Share of the training time.",
        ),
        lines(
            "Median time of an iteration",
            "s",
            [(f"earlybird_step_median_seconds{{{RANK}}}", NAME)],
            "Of the last 101.",
        ),
    ]


def _machines() -> list[Panel]:
    return [
        lines(
            "Memory of the processes",
            "bytes",
            [(f"earlybird_host_memory_bytes{{{RANK}}}", NAME)],
            "Resident; it must not creep up.",
        ),
        lines(
            "Free disk where the checkpoints go",
            "percentunit",
            [(f"earlybird_disk_free_bytes{{{RUN}}} / earlybird_disk_size_bytes{{{RUN}}}", "{{run}}")],
            "An alert under 10 %.",
        ),
    ]


def _gpus() -> list[Panel]:
    gpu = "GPU {{gpu}} of {{Hostname}}"
    size = f"earlybird_gpu_memory_size_bytes{{{RANK}}}"
    return [
        lines(
            "GPU utilization, by rank",
            "percentunit",
            [(f"earlybird_gpu_utilization_ratio{{{RANK}}}", NAME)],
            "NVML: share of the time in which any kernel ran.",
        ),
        lines(
            "GPU memory, by rank",
            "percentunit",
            [
                (f"earlybird_gpu_memory_used_bytes{{{RANK}}} / {size}", f"{NAME}, in use"),
                (f"earlybird_gpu_memory_reserved_bytes{{{RANK}}} / {size}", f"{NAME}, torch's"),
            ],
            "In use by whomever, and of that torch's allocator.",
        ),
        lines(
            "GPU allocations tried again, by rank",
            "short",
            [(f"earlybird_gpu_allocation_retries_total{{{RANK}}}", NAME)],
            "Where it rises, memory is nearly full.",
        ),
        lines("GPU busy (DCGM)", "percent", [("DCGM_FI_DEV_GPU_UTIL", gpu)], "Share of the time with a kernel."),
        lines(
            "Tensor cores busy (DCGM)",
            "percentunit",
            [("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", gpu)],
            "Share of the cycles.",
        ),
        lines("GPU temperature (DCGM)", "celsius", [("DCGM_FI_DEV_GPU_TEMP", gpu)], "Clocks fall where it is high."),
        lines("GPU power (DCGM)", "watt", [("DCGM_FI_DEV_POWER_USAGE", gpu)], "Of each."),
        lines("GPU clock (DCGM)", "hertz", [("DCGM_FI_DEV_SM_CLOCK * 1e6", gpu)], "Of the multiprocessors."),
        lines("GPU errors (DCGM)", "none", [("DCGM_FI_DEV_XID_ERRORS", gpu)], "Code of the last XID error, 0: none."),
    ]
