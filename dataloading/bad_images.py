"""Images that cannot be read, and what takes their place, so that one broken file does not end a run."""

from __future__ import annotations

import logging

import numpy as np

from dataloading.config import DataConfig
from dataloading.header import MAX_PIXELS, BadImageError
from dataloading.index import PIXELS, Index
from dataloading.scan import decode_rgb
from dataloading.storage import Storage
from dataloading.stream import Plan

log = logging.getLogger(__name__)

_MAX_TRIES = 1000  # unreadable rows in sequence: more than that is a set that is gone, not an image that is broken
_JPEG, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_END_SEARCHED = 64  # bytes; some writers pad behind the end marker


class BadImages:
    """Judges rows of one index. A verdict depends on the row's file alone and is kept, so every loader, world size and
    resumed run replaces the same images by the same images."""

    def __init__(self, index: Index, storage: Storage) -> None:
        self.index, self.storage = index, storage
        self._verdicts: dict[int, str | None] = {}

    def known(self, row: int) -> str | None:
        """The reason why a row that was judged before is unreadable."""
        return self._verdicts.get(row)

    def suspect(self, row: int, data: np.ndarray) -> bool:
        """Whether the row must be judged before a decoder sees it: no size in the index, too large, not the pixels that
        it should be, or a JPEG without an end marker, whose region may decode although the file is cut short."""
        if row in self._verdicts:
            return self._verdicts[row] is not None
        pixels = int(self.index.heights[row]) * int(self.index.widths[row])
        if not 0 < pixels <= MAX_PIXELS:
            return True
        if self.index.flags[row] & PIXELS:
            return data.size != pixels * 3
        if data[-2:].tobytes() == _END_OF_IMAGE:
            return False
        return data[:2].tobytes() == _JPEG and _END_OF_IMAGE not in data[-_END_SEARCHED:].tobytes()

    def verdict(self, row: int) -> str | None:
        """None if the row's image can be read; else the reason. Decodes all of it, once."""
        if row not in self._verdicts:
            try:
                self.pixels(row)
                self._verdicts[row] = None
            except BadImageError as error:
                self._verdicts[row] = error.reason
                log.warning("image %d, %s: %s", row, self.index.name(row), error)
        return self._verdicts[row]

    def pixels(self, row: int) -> np.ndarray:
        """[height, width, 3] uint8 by the reference decoder; raises BadImageError."""
        height, width = int(self.index.heights[row]), int(self.index.widths[row])
        data = self.storage.read_one(row)
        if not self.index.flags[row] & PIXELS:
            image = decode_rgb(data.tobytes())
            if image.shape[:2] != (height, width):
                size = f"{image.shape[0]}x{image.shape[1]}"
                raise BadImageError("damaged", f"is {size}, the index says {height}x{width}: prepare the set again")
            return image
        if data.size != height * width * 3:
            raise BadImageError("truncated", f"{data.size} bytes, {height}x{width} pixels need {height * width * 3}")
        return data.reshape(height, width, 3)

    def substitute(self, row: int) -> int:
        """The next row (round the end) that can be read. Raises ValueError where a long stretch cannot."""
        for step in range(1, min(_MAX_TRIES, len(self.index))):
            candidate = (row + step) % len(self.index)
            if self.verdict(candidate) is None:
                return candidate
        raise ValueError(
            f"image {row} ({self.index.name(row)}) cannot be read ({self.verdict(row)}), nor can up to "
            f"{_MAX_TRIES} images behind it; is data.path still there?"
        )

    def replace(self, plan: Plan, bad: dict[int, str], config: DataConfig) -> Plan:
        """The plan without the samples at the places `bad` (reasons by place).

        Training: another image takes the place. Evaluation: the place is masked out, since an image counted twice would
        falsify the result no less than one left out.
        """
        for place, reason in bad.items():
            row = int(plan.ids[place])
            if plan.mask is not None:
                plan = plan.without(place, reason)
            else:
                plan = plan.with_row(place, self.substitute(row), reason, self.index, config)
        return plan
