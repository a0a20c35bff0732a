"""The demo set: crops of 14 photographs that come inside scikit-image and scikit-learn, so nothing is downloaded.

The class is the photograph. Training crops come from its left 68 %, validation crops from its right, so that no pixel
is in both. Harder than it looks: several photographs are textures in gray.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL import __version__ as pillow_version

from dataloading import tar
from dataloading.cache import cache_folder, once

_SKIMAGE = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
_SKLEARN = {"flower": "flower.jpg", "temple": "china.jpg"}
TRAIN_SHARE = 0.68
NUM_TRAIN, NUM_VAL = 250, 60  # crops per class
SIDE = 64  # pixels: room for random crops down to the 32 to 48 that the demo's net is fed
_RECIPE = 1  # raise when the crops change, so that caches are made anew


def demo_archive() -> Path:
    """The demo set as one tar of an image folder, made on first use (about three seconds) in the cache folder."""
    photographs = _photographs()
    key = repr((_RECIPE, pillow_version, [(name, path.stat().st_size) for name, path in photographs.items()]))
    folder = cache_folder() / "demo" / hashlib.sha256(key.encode()).hexdigest()[:16]
    return once(folder, lambda temporary: _cut(photographs, temporary / "demo.tar")) / "demo.tar"


def _photographs() -> dict[str, Path]:
    found = {}
    for package, inside, files in (("skimage", "data", _SKIMAGE), ("sklearn", "datasets/images", _SKLEARN)):
        spec = importlib.util.find_spec(package)  # only its folder is wanted: importing takes a second
        for name, file in files.items():
            path = Path(spec.origin).parent / inside / file if spec and spec.origin else None
            if path is None or not path.is_file():
                raise ValueError(f"the demo needs {file} of {package}; install scikit-image and scikit-learn")
            found[name] = path
    return dict(sorted(found.items()))


def _cut(photographs: dict[str, Path], destination: Path) -> None:
    with open(destination, "wb") as output:
        for number, (name, path) in enumerate(photographs.items()):
            with Image.open(path) as image:
                photograph = image.convert("RGB")
            random = np.random.Generator(np.random.Philox(key=[_RECIPE, number]))
            edge = int(photograph.width * TRAIN_SHARE)
            room = min(photograph.height, photograph.width - edge)  # the same scale on both sides
            for split, count, left, right in (("train", NUM_TRAIN, 0, edge), ("val", NUM_VAL, edge, photograph.width)):
                for crop in range(count):
                    side = int(random.uniform(0.5, 0.9) * room)
                    x = int(random.integers(left, right - side + 1))
                    y = int(random.integers(0, photograph.height - side + 1))
                    part = photograph.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                    encoded = io.BytesIO()
                    part.save(encoded, "JPEG", quality=88)
                    output.write(tar.member(f"{split}/{name}/{crop:04d}.jpg", encoded.getvalue()))
        output.write(tar.END)
