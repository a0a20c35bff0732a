"""The loaders against each other on real photographs, on odd formats, and on what is broken."""

from __future__ import annotations

import dataclasses
import gc
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dataloading.batch import Batch
from dataloading.config import DataConfig
from dataloading.datasets.open import open_splits
from dataloading.header import BadImageError, read_header
from dataloading.index import PIXELS, Index
from dataloading.loader import evaluation_loader, train_loader

CPU = torch.device("cpu")
IMAGENET = DataConfig(num_threads=2, prefetch=1)
SMALL = DataConfig(num_threads=2, prefetch=1, image_size=48, resize_size=56)
CIFAR = DataConfig(num_threads=2, augmentation="cifar", image_size=32, prefetch=1)
LOADERS = ("dali", "torchvision")


def _train(config: DataConfig, index: Index, update_batch: int, start: int, end: int, **how: int) -> list[Batch]:
    loader = train_loader(config, index, seed=3, update_batch=update_batch, device=CPU, **how)
    batches = [batch.normalized(torch.float32) for batch in loader.batches(start, end)]
    loader.close()
    return batches


def _evaluate(config: DataConfig, index: Index, batch_size: int) -> list[Batch]:
    loader = evaluation_loader(config, index, batch_size=batch_size, device=CPU)
    batches = [batch.normalized(torch.float32) for batch in loader]
    loader.close()
    assert len(batches) == len(loader)
    return batches


def _both(config: DataConfig, run: Callable[[DataConfig], list[Batch]]) -> Iterator[tuple[Batch, Batch]]:
    ours, theirs = (run(dataclasses.replace(config, loader=loader)) for loader in LOADERS)
    return zip(ours, theirs, strict=True)


def _difference(config: DataConfig, a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean absolute difference, in 1/255."""
    return float(((a - b).abs() * torch.tensor(config.std)[:, None, None]).mean() * 255)


def _assert_same(config: DataConfig, a: Batch, b: Batch) -> None:
    assert np.array_equal(a.ids, b.ids)
    assert torch.equal(a.labels, b.labels)
    assert (a.num_replaced, a.replaced) == (b.num_replaced, b.replaced)
    assert a.images.shape == b.images.shape
    assert a.images.is_contiguous(memory_format=torch.channels_last)
    for i in range(len(a)):
        assert _difference(config, a.images[i], b.images[i]) < 0.5


def _encoded(pixels: np.ndarray, form: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def _photo(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours: a picture that JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _index(folder: Path, images: list[bytes], sides: list[tuple[int, int]], files: bool = False) -> Index:
    """The images in one container, or as files of their own."""
    names = [f"image{i}" for i in range(len(images))]
    sizes = np.array([len(image) for image in images])
    heights, widths = np.array(sides).T
    flags = []
    for image in images:
        try:
            flags.append(read_header(lambda offset, count, data=image: data[offset : offset + count], len(image)).flags)
        except BadImageError:
            flags.append(0)
    known = {"heights": heights, "widths": widths, "flags": flags, "sizes": sizes}
    labels = np.arange(len(images)) % 3
    if files:
        for name, image in zip(names, images, strict=True):
            (folder / name).write_bytes(image)
        return Index.build("abc", labels, names, root=str(folder), **known)
    (folder / "images.bin").write_bytes(b"".join(images))
    container = {"containers": [str(folder / "images.bin")], "container": np.zeros(len(images))}
    return Index.build("abc", labels, names, offsets=np.cumsum(sizes) - sizes, **container, **known)


def _jpegs(num_images: int) -> tuple[list[bytes], list[tuple[int, int]]]:
    sides = [(60 + 7 * (i % 5), 80 - 9 * (i % 3)) for i in range(num_images)]
    return [_encoded(_photo(*side, i), "JPEG", quality=90) for i, side in enumerate(sides)], sides


@pytest.mark.parametrize("archive", ["imagewoof2-320-1k.tar", "imagenette-224-4k.tar"])
def test_the_loaders_agree_on_photographs(
    data_folder: Path, archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    photos = open_splits(data_folder / archive, num_threads=2).train
    for ours, theirs in _both(IMAGENET, lambda config: _train(config, photos, 12, 2, 4)):
        _assert_same(IMAGENET, ours, theirs)
    some = photos.subset(np.arange(0, len(photos), len(photos) // 25))
    for ours, theirs in _both(IMAGENET, lambda config: _evaluate(config, some, 16)):
        _assert_same(IMAGENET, ours, theirs)


def test_the_loaders_agree_on_odd_jpegs(data_folder: Path, tmp_path: Path) -> None:
    """Gray, progressive, rotated by Exif, without an end marker, tiny, huge."""
    with tarfile.open(data_folder / "odd-jpegs.tar") as archive:
        files = [archive.extractfile(member) for member in archive if member.isfile()]
        images = [file.read() for file in files if file]
    headers = [
        read_header(lambda offset, count, data=image: data[offset : offset + count], len(image)) for image in images
    ]
    index = _index(tmp_path, images, [(header.height, header.width) for header in headers])
    for ours, theirs in _both(IMAGENET, lambda config: _train(config, index, len(index) // 2, 0, 1)):
        _assert_same(IMAGENET, ours, theirs)
        assert ours.num_replaced == 0
    for ours, theirs in _both(IMAGENET, lambda config: _evaluate(config, index, len(index))):
        _assert_same(IMAGENET, ours, theirs)
        assert ours.num_replaced == 0


def test_odd_formats_are_images_like_any_other(tmp_path: Path) -> None:
    photo = _photo(70, 90, 0)
    alpha = np.dstack([photo, np.arange(70 * 90).reshape(70, 90).astype(np.uint8)])
    deep = Image.fromarray(photo[:, :, 0].astype(np.uint16) * 257)
    deep_file = io.BytesIO()
    deep.save(deep_file, "PNG")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    images = [
        _encoded(photo, "PNG"),
        _encoded(photo, "PNG", "P"),
        _encoded(photo, "PNG", "L"),
        _encoded(alpha, "PNG", "RGBA"),
        deep_file.getvalue(),
        _encoded(photo, "WEBP"),
        _encoded(photo, "BMP"),
        _encoded(photo, "TIFF"),
        _encoded(photo, "PPM"),
        _encoded(photo, "JPEG", "L"),
        _encoded(photo, "JPEG", "CMYK"),
        _encoded(photo, "JPEG", progressive=True),
        _encoded(photo, "JPEG", subsampling=0),
        _encoded(photo, "JPEG", exif=rotated),
        _encoded(photo, "JPEG") + bytes(100),  # padded behind the end marker
        _encoded(_photo(1, 1, 1), "JPEG"),
        _encoded(_photo(2, 2, 2), "PNG"),
        _encoded(_photo(10, 3000, 3), "JPEG"),
        _encoded(_photo(3000, 10, 4), "JPEG"),
    ]
    index = _index(tmp_path, images, [(70, 90)] * 15 + [(1, 1), (2, 2), (10, 3000), (3000, 10)])
    for ours, theirs in _both(SMALL, lambda config: _train(config, index, 9, 0, 3)):
        _assert_same(SMALL, ours, theirs)
        assert ours.num_replaced == 0
    for ours, theirs in _both(SMALL, lambda config: _evaluate(config, index, 19)):
        _assert_same(SMALL, ours, theirs)
        for i in range(1, 15):  # one picture in 15 forms, coloured or gray
            reference = ours.images[2 if i in (4, 9) else 0]
            assert i in (2, 4, 9) or _difference(SMALL, ours.images[i], reference) < 6


def _break(images: list[bytes]) -> dict[int, str]:
    """Spoil some images in place; the reasons by row."""
    images[3] = images[3][: len(images[3]) * 2 // 3]
    images[4] = b"<html>no image here</html>"
    images[11] = images[11][:200]
    images[17] = _encoded(_photo(33, 44, 0), "JPEG")  # not of the size in the index
    images[29] = _encoded(_photo(60, 80, 0), "GIF", "P")  # DALI reads no GIF, and neither does the index
    return {3: "truncated", 4: "not_an_image", 11: "truncated", 17: "damaged", 29: "unsupported"}


@pytest.mark.parametrize("files", [False, True])
def test_broken_images_are_replaced_and_the_run_goes_on(tmp_path: Path, files: bool) -> None:
    images, sides = _jpegs(30)
    reasons = _break(images)
    index = _index(tmp_path, images, sides, files)
    if files:
        (tmp_path / "image20").unlink()
        (tmp_path / "image21").write_bytes(b"")
        reasons |= {20: "unreadable", 21: "zero_bytes"}
    successor = {3: 5, 4: 5, 11: 12, 17: 18, 29: 0, 20: 22, 21: 22}
    good = _train(SMALL, _index(_made(tmp_path / "good"), *_jpegs(30)), 10, 0, 6)

    seen: dict[int, str] = {}
    pairs = list(_both(SMALL, lambda config: _train(config, index, 10, 0, 6)))
    for (ours, theirs), whole in zip(pairs, good, strict=True):
        _assert_same(SMALL, ours, theirs)
        seen |= dict(ours.replaced)
        assert ours.num_replaced == sum(int(row) in reasons for row in whole.ids)
        assert ours.ids.tolist() == [successor[row] if row in reasons else row for row in whole.ids.tolist()]
        assert ours.labels.tolist() == [row % 3 for row in ours.ids.tolist()]
        untouched = torch.tensor([row not in reasons for row in whole.ids.tolist()])
        assert torch.equal(ours.images[untouched], whole.images[untouched])
    assert seen == reasons  # four epochs: every image has come

    resumed = _train(SMALL, index, 10, 4, 6)  # by a loader that has met no broken image yet
    for (unbroken, _), batch in zip(pairs[4:], resumed, strict=True):
        assert torch.equal(unbroken.images, batch.images)
        assert unbroken.replaced == batch.replaced


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_broken_images_are_left_out_of_an_evaluation(tmp_path: Path) -> None:
    images, sides = _jpegs(30)
    reasons = _break(images)
    index = _index(tmp_path, images, sides)
    for ours, theirs in _both(SMALL, lambda config: _evaluate(config, index, 7)):
        _assert_same(SMALL, ours, theirs)
        assert ours.mask is not None
        assert ours.mask.tolist() == [row not in reasons for row in ours.ids.tolist()]
        assert dict(ours.replaced) == {row: reasons[row] for row in ours.ids.tolist() if row in reasons}


def test_a_form_that_dali_does_not_know_is_decoded_by_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No form is known that Pillow reads and DALI does not, so here DALI refuses TIFF."""
    from dataloading import dali_pipelines

    class NoTiff:
        def __init__(self, pipeline: Any) -> None:
            self.pipeline, self.refused = pipeline, False

        def feed_input(self, name: str, data: Any) -> None:
            self.refused |= name == dali_pipelines.ENCODED and any(image[:2].tobytes() == b"II" for image in data)
            self.pipeline.feed_input(name, data)

        def schedule_run(self) -> None:
            self.pipeline.schedule_run()

        def share_outputs(self, cuda_stream: object) -> Any:
            if self.refused:
                raise RuntimeError("no TIFF")
            return self.pipeline.share_outputs()

        def release_outputs(self) -> None:
            self.pipeline.release_outputs()

    images, sides = _jpegs(8)
    images[5] = _encoded(_photo(*sides[5], 5), "TIFF")
    index = _index(tmp_path, images, sides)
    expected = _train(SMALL, index, 4, 0, 3)
    real = dali_pipelines.region_pipeline
    monkeypatch.setattr(dali_pipelines, "region_pipeline", lambda *how: NoTiff(real(*how)))
    for ours, whole in zip(_train(SMALL, index, 4, 0, 3), expected, strict=True):
        assert torch.equal(ours.images, whole.images)
        assert ours.num_replaced == 0
    assert "no TIFF" in caplog.text


def test_a_set_that_is_gone_ends_the_run_with_its_name(tmp_path: Path) -> None:
    index = _index(tmp_path, *_jpegs(8), files=True)
    for i in range(8):
        (tmp_path / f"image{i}").unlink()
    with pytest.raises(ValueError, match=r"image\d.*is data\.path still there"):
        _train(SMALL, index, 4, 0, 1)
    index = _index(tmp_path, *_jpegs(8))
    (tmp_path / "images.bin").unlink()
    with pytest.raises(ValueError, match=r"images\.bin cannot be mapped"):
        _train(SMALL, index, 4, 0, 1)


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(CIFAR, padding=7)], ids=["imagenet", "cifar"])
def test_the_gpu_graph_cuts_the_same_pixels(tmp_path: Path, config: DataConfig) -> None:
    """The graph that ends on the GPU, run on the CPU, against the one that ends at the decoder."""
    from dataloading.assembly import Target
    from dataloading.dali_loader import DaliReader
    from dataloading.stream import Stream, evaluation_plans

    images, sides = _jpegs(30)
    _break(images)
    index = _index(tmp_path, images, sides)
    stream = Stream(index, config, 0, 10)
    results = []
    for whole in (False, True):
        reader = DaliReader(Target.of(index, config, CPU), 2, gpu_graph_on_cpu=whole)
        batches = [*reader.batches(stream.plans(0, 3)), *reader.batches(evaluation_plans(index, config, 7))]
        results.append([batch.normalized(torch.float32) for batch in batches])
        reader.close()
    for ours, theirs in zip(*results, strict=True):
        _assert_same(config, ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize(("decode", "load"), [("cpu", 0.0), ("gpu", 0.0), ("gpu", 0.65), ("gpu", 1.0)])
def test_batches_on_the_gpu_are_those_of_the_cpu(tmp_path: Path, decode: Any, load: float) -> None:
    """Also while the loader's stream lags behind by a tenth of a second, which a decoder must wait for that writes into
    memory of the stream."""
    images, sides = _jpegs(30)
    _break(images)
    index = _index(tmp_path, images, sides)
    config = dataclasses.replace(SMALL, decode=decode, hardware_decoder_load=load)
    loader = train_loader(config, index, seed=3, update_batch=10, device=torch.device("cuda", 0))
    stream = loader.reader.target.stream  # type: ignore[attr-defined]
    for loaded, theirs in zip(loader.batches(0, 24), _train(SMALL, index, 10, 0, 24), strict=True):
        ours = loaded.normalized(torch.float32)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)  # cycles
        assert np.array_equal(ours.ids, theirs.ids)
        assert ours.replaced == theirs.replaced
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert _difference(SMALL, ours.images.cpu(), theirs.images) < 2
    loader.close()


def test_plain_pixels_need_no_decoder(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    pixels.tofile(tmp_path / "pixels.bin")
    size = 32 * 32 * 3
    index = Index.build(
        "abc",
        np.arange(60) % 3,
        [str(i) for i in range(60)],
        sizes=np.full(60, size),
        offsets=np.arange(60) * size,
        containers=[str(tmp_path / "pixels.bin")],
        container=np.zeros(60),
        heights=np.full(60, 32),
        widths=np.full(60, 32),
        flags=np.full(60, PIXELS),
    )
    for ours, theirs in _both(CIFAR, lambda config: _train(config, index, 20, 0, 3)):
        _assert_same(CIFAR, ours, theirs)
    (batch,) = _evaluate(CIFAR, index, 60)
    std, mean = torch.tensor(CIFAR.std)[:, None, None], torch.tensor(CIFAR.mean)[:, None, None]
    assert np.array_equal(((batch.images * std + mean) * 255).round().permute(0, 2, 3, 1).numpy(), pixels)
    with pytest.raises(ValueError, match=r"data\.decode=cpu"):
        _train(dataclasses.replace(CIFAR, decode="gpu"), index, 20, 0, 1)


def test_ranks_load_shares_of_the_same_batch(tmp_path: Path) -> None:
    index = _index(tmp_path, *_jpegs(30))
    (whole,) = _train(SMALL, index, 12, 2, 3)
    parts = [_train(SMALL, index, 12, 2, 3, rank=rank, world_size=3)[0] for rank in range(3)]
    for half, whole_half in ((slice(0, 4), slice(0, 12)), (slice(4, 8), slice(12, 24))):
        assert torch.equal(torch.cat([part.images[half] for part in parts]), whole.images[whole_half])


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_left_in_the_middle_starts_anew(tmp_path: Path, loader: str) -> None:
    index = _index(tmp_path, *_jpegs(30))
    config = dataclasses.replace(SMALL, loader=loader)
    train = train_loader(config, index, seed=3, update_batch=10, device=CPU)
    left = iter(train.batches(0, 50))
    next(left)
    left.close()
    again = list(train.batches(1, 3))
    train.close()
    fresh = train_loader(config, index, seed=3, update_batch=10, device=CPU)
    for ours, theirs in zip(again, fresh.batches(1, 3), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert ours.images.dtype == torch.uint8
    fresh.close()
    assert not {"dali loader", "resize_0", "files_0"} & {thread.name for thread in threading.enumerate()}


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """A few hundred batches; the long form is dataloading.benchmark.memory_growth."""
    index = _index(tmp_path, *_jpegs(64))
    loader = train_loader(SMALL, index, seed=0, update_batch=16, device=CPU)
    process = psutil.Process()
    after = []
    for step, _ in enumerate(loader.batches(0, 401)):
        if step in (100, 400):
            gc.collect()
            after.append(process.memory_info().rss)
    loader.close()
    assert after[1] - after[0] < 12 * 2**20  # a leaked batch would be 0.9 MB, 260 MB in all
