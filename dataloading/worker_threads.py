"""Threads that compute on one core each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits


def worker_threads(num_threads: int, name: str) -> ThreadPoolExecutor:
    """`num_threads` threads whose torch operations start no threads of their own.

    Else every one of them would spread an image's pixels over all cores: 8 % of the loader's rate on two.
    """
    return ThreadPoolExecutor(num_threads, name, initializer=compute_alone)


def compute_alone() -> None:
    """The calling thread's torch operations start no threads of their own, from its first one on.

    A second team of threads, even an idle one, has OpenMP put those of training to sleep between operations, instead of
    letting them wait: training took 2.3 times as long on two cores.
    """
    torch.get_num_threads()  # at its first use torch gives a thread the process's number: here, and not later
    threadpool_limits(1, user_api="openmp")  # of this thread alone, as OpenMP has it
