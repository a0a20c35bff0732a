"""Images kept out of training, to set exit thresholds and choose ratios: always drawn from the training rows."""

from __future__ import annotations

import numpy as np

from dataloading.index import Index

_STREAM = 0x48454C44  # "HELD": keeps this draw apart from every other use of the seed


def num_heldout(heldout: float, num_training: int) -> int:
    """A share (< 1) rounded, or a number. Raises ValueError above half of the training images."""
    number = round(heldout * num_training) if heldout < 1 else round(heldout)
    if 2 * number > num_training:
        raise ValueError(
            f"data.heldout keeps {number:,} of {num_training:,} training images out; at most half "
            f"({num_training // 2:,}) may be: lower it"
        )
    return number


def split_rows(train: Index, heldout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that train, rows held out), each sorted; drawn evenly over all rows by the seed, the same everywhere."""
    number = num_heldout(heldout, len(train))
    order = np.random.Generator(np.random.Philox(key=[seed, _STREAM])).permutation(len(train))
    return np.sort(order[number:]), np.sort(order[:number])
