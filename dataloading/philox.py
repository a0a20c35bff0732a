"""Random numbers as a pure function of (seed, epoch, place): numpy's Philox, a counter-based generator.

Only the raw 64-bit words are used: unlike numpy's distributions they never change from one version to the next.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

WORDS_PER_BLOCK = 4  # Philox4x64 makes four 64-bit words from one value of its counter

Stream = Literal["permutation", "bijection", "augmentation"]
_STREAMS: dict[Stream, int] = {"permutation": 0, "bijection": 1, "augmentation": 2}


def words(seed: int, epoch: int, stream: Stream, first_block: int, num_words: int) -> np.ndarray:
    """[num_words] uint64 from block `first_block` on, of the stream keyed by (seed, epoch)."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([first_block, 0, 0, _STREAMS[stream]], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(num_words)


def uniforms(seed: int, epoch: int, stream: Stream, first_block: int, num_words: int) -> np.ndarray:
    """[num_words] float64 in [0, 1): the upper 53 bits of each word."""
    return (words(seed, epoch, stream, first_block, num_words) >> np.uint64(11)) * 2.0**-53
