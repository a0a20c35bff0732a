"""This project against the published programs' numbers: every file of the vectors folder, found by its prefix."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.models.authors_names import from_authors, model_config_from_authors_options
from trainer.models.build import build_model

VECTORS = Path(os.environ.get("EARLYBIRD_VECTORS", Path(__file__).resolve().parents[2] / "shared" / "vectors"))


def vector_files(prefix: str) -> list:
    """One test parameter a file of that prefix; one that skips, with the reason, where there is none."""
    files = sorted(VECTORS.glob(f"{prefix}_*.npz"))
    missing = pytest.param(None, marks=pytest.mark.skip(reason=f"EARLYBIRD_VECTORS: no {prefix}_*.npz in {VECTORS}"))
    return [pytest.param(file, id=file.stem) for file in files] or [missing]


def tensors(vectors: np.lib.npyio.NpzFile, prefix: str) -> dict[str, torch.Tensor]:
    names = [name for name in vectors.files if name.startswith(prefix)]
    return {name.removeprefix(prefix): torch.from_numpy(vectors[name]) for name in names}


@pytest.mark.parametrize("file", vector_files("model"))
def test_model_logits(file: Path) -> None:
    with np.load(file) as vectors:
        config = model_config_from_authors_options(json.loads(str(vectors["config"])))
        net = build_model(config, num_classes=vectors["logits_eval"].shape[-1]).double()
        net.load_state_dict(from_authors(config, tensors(vectors, "weights/")))
        images = torch.from_numpy(vectors["images"]).double()
        for mode in ("eval", "train"):
            expected = torch.from_numpy(vectors[f"logits_{mode}"])
            with torch.no_grad():
                logits = torch.stack(net.train(mode == "train")(images))
            assert (logits - expected).abs().max() <= 1e-9 * expected.abs().max(), mode
