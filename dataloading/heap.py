"""The C library's heap, from which images, activations and gradients on a CPU are taken."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

_libc = ctypes.CDLL(None)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_HUGE_PAGE = 2 << 20  # bytes, on x86-64

_reserved = 0  # bytes at the heap's end that stay when it is trimmed


def keep_heap() -> None:
    """Have the C library keep what is freed, in huge pages, as a GPU's caching allocator does; for work on a CPU.

    By itself glibc returns large blocks, and much of what is free after an iteration, to the system, whose pages the
    next iteration faults in again, 4 kB at a time: a tenth of a meta step's time. Kept, memory stays at its peak until
    the process ends, and the peak is a few percent higher. Called again, it does nothing; nor without glibc.
    """
    if _reserved or not sys.platform.startswith("linux") or not hasattr(_libc, "mallopt"):
        return
    _libc.mallopt(_M_MMAP_MAX, 0)
    _libc.mallopt(_M_TRIM_THRESHOLD, -1)
    _reserve(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _reserve(size: int) -> None:
    """Let the heap's next `size` bytes be huge pages: addresses only, until they are written to.

    Where so many are refused (ulimit, strict overcommit) pages stay small.
    """
    global _reserved
    try:  # a malloc that fails would leave this thread with another heap, which has a limit
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return
    malloc, free, madvise = _libc.malloc, _libc.free, _libc.madvise
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.argtypes, madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = malloc(size)
    if address is None:
        return
    first = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    madvise(first, address + size - first, mmap.MADV_HUGEPAGE)
    free(address)
    _reserved = size


def trim_heap() -> None:
    """Give what is free on the heap, but for its reserved end, back to the system: 2 ms.

    DALI allocates every region anew. What glibc keeps between such pieces grew to 30 MB over 4,000 batches, slowly and
    without a clear end. A C library without malloc_trim is left as it is.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(_reserved))
