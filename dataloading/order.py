"""Which image comes when: a pure function of the seed, so that resume needs no state and ranks need no word.

The stream is one permutation of the N images per epoch, one after another without end. Iteration t takes the positions
[t*B, (t+1)*B) of it: every batch is full, and every epoch's images come none lost, none twice, at any N and B.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from dataloading import philox

STORED_UP_TO = 1 << 24  # images; a stored permutation of that many takes 64 MiB, and two epochs may be at hand
_ROUNDS = 8
_STORED_EPOCHS = 2


class Order:
    """The order of `num_images` images for one seed.

    stored  keep each epoch's permutation in memory (sorted random keys); False: compute every place on its own by a
            keyed bijection, in memory independent of N. None chooses by N. The two give different orders.
    """

    def __init__(self, num_images: int, seed: int, stored: bool | None = None) -> None:
        if num_images < 1:
            raise ValueError("the training set holds no image; check data.path")
        self.num_images = num_images
        self.seed = seed
        self.stored = num_images <= STORED_UP_TO if stored is None else stored
        self._permutations: OrderedDict[int, np.ndarray] = OrderedDict()

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Positions [start, stop) of the endless stream as (epoch, first place, end place), split at epochs' ends."""
        while start < stop:
            epoch, place = divmod(start, self.num_images)
            end = min(self.num_images, place + stop - start)
            yield epoch, place, end
            start += end - place

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] int64 rows of the index at those positions."""
        parts = [self.rows_of_epoch(epoch, place, end) for epoch, place, end in self.spans(start, stop)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def rows_of_epoch(self, epoch: int, place: int, end: int) -> np.ndarray:
        """Rows at the places [place, end) of one epoch's permutation."""
        if self.stored:
            return self._permutation(epoch)[place:end].astype(np.int64)
        return _bijection(np.arange(place, end, dtype=np.uint64), self.num_images, self.seed, epoch)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # 0.1 s for ImageNet's 1.28 M rows, once an epoch, in the loader's own thread.
            keys = philox.words(self.seed, epoch, "permutation", 0, self.num_images)
            self._permutations[epoch] = np.argsort(keys, kind="stable").astype(np.uint32)
            while len(self._permutations) > _STORED_EPOCHS:
                self._permutations.popitem(last=False)
        return self._permutations[epoch]


def _bijection(places: np.ndarray, num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A Feistel network on the smallest even number of bits that holds N; what falls outside [0, N) walks on along its
    cycle until it is inside, in under 4 steps on average (Black and Rogaway, "Ciphers with arbitrary finite domains").
    """
    half = max(1, ((num_images - 1).bit_length() + 1) // 2)
    keys = philox.words(seed, epoch, "bijection", 0, _ROUNDS)
    values = _encrypt(places, half, keys)
    outside = np.flatnonzero(values >= num_images)
    while len(outside):
        values[outside] = _encrypt(values[outside], half, keys)
        outside = outside[values[outside] >= num_images]
    return values.astype(np.int64)


def _encrypt(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
