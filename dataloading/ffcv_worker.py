"""FFCV's side of the loader's benchmark: a script that an interpreter with ffcv runs; ffcv_peer.py starts it.

One JSON object a line each way. It greets with versions; then writes the images in FFCV's format and answers with the
bytes of an image there; then every line asks for one round. It ends with its standard input. Nothing of earlybird is
imported: that interpreter need not have it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_EPOCH = 1 << 22  # images, at least: a small set many times over, or FFCV would start anew (fill, allocate) too often
_JPEG_QUALITY = 90  # of FFCV's own ImageNet files


class Photographs:
    """The images of a folder of class folders, decoded, as FFCV's writer wants them: (uint8 [H, W, 3], label)."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).glob("*/*"))
        self.classes = {name: label for label, name in enumerate(sorted({path.parent.name for path in self.paths}))}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        import numpy as np
        from PIL import Image

        path = self.paths[row]
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")), self.classes[path.parent.name]


def main() -> None:
    here = Path(__file__).resolve().parent  # the script's folder, whose modules must not stand for those of others
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer

    import ffcv  # noqa: F401
    import numba

    _answer(answers, {name: version(name) for name in ("ffcv", "numba", "torch")})
    task = json.loads(sys.stdin.readline() or "null")
    if task is None:
        return
    _write(task)
    loader = _loader(task)
    _round(loader, seconds=0, warm_up=1)  # compiles
    _answer(answers, {"mean_bytes": _mean_bytes(task["file"]), "threading_layer": numba.threading_layer()})
    for line in sys.stdin:
        _answer(answers, _round(loader, **json.loads(line)))


def _write(task: dict[str, Any]) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=_JPEG_QUALITY), "label": IntField()}
    previous = signal.signal(signal.SIGCHLD, _end_with_a_child)
    DatasetWriter(task["file"], fields, num_workers=task["threads"]).from_indexed_dataset(Photographs(task["folder"]))
    signal.signal(signal.SIGCHLD, previous)


def _end_with_a_child(*_: object) -> None:
    """FFCV's writer waits for ever for a process of its own that has died, as one does at an unreadable image."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if status:
            os._exit(1)


def _loader(task: dict[str, Any]) -> Any:
    import numpy as np
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    side, images = task["image_size"], len(Photographs(task["folder"]))
    crop = RandomResizedCropRGBImageDecoder((side, side), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    return Loader(
        task["file"],
        batch_size=task["batch_size"],
        num_workers=task["threads"],
        order=OrderOption.RANDOM,
        os_cache=True,
        indices=np.tile(np.arange(images, dtype=np.uint64), -(-_EPOCH // images)),
        pipelines={"image": [crop, RandomHorizontalFlip(), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )


def _round(loader: Any, seconds: float, warm_up: int) -> dict[str, float]:
    """Images, and the seconds they took, over whole batches of uint8 [B, H, W, 3]; nothing goes on afterwards."""
    batches = iter(loader)
    for _ in range(warm_up):
        next(batches)
    images, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        batch = next(batches, None)
        if batch is None:  # the epoch is over
            batches = iter(loader)
        else:
            images += len(batch[0])
    batches.close()
    batches.join(10.0)  # its thread fills the queue, waits half a second and sees that it is closed
    return {"images": images, "seconds": elapsed}


def _mean_bytes(file: str) -> float:
    from ffcv.reader import Reader

    return float(Reader(file).alloc_table["size"].mean())


def _answer(answers: Any, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
