"""The library reads what is written without it, byte for byte."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.run.tensors_file import _NAMES, pieces

SHAPES = st.lists(st.integers(0, 5), max_size=4)


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(sorted(_NAMES, key=str)), SHAPES), max_size=8))
def test_the_library_reads_it(kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    kinds = {name: kind for name, kind in kinds.items() if name != "__metadata__"}  # the format's own word
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in kinds.items()}
    read = safetensors.torch.load(b"".join(pieces(tensors)))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)


def test_views_are_not_copies() -> None:
    weight = torch.zeros(1000)
    *_, memory = pieces({"weight": weight})
    weight += 1
    assert bytes(memory) == bytes(weight.numpy())


def test_a_dtype_that_no_state_has() -> None:
    with pytest.raises(ValueError, match=r"weight is torch\.complex64"):
        list(pieces({"weight": torch.zeros(1, dtype=torch.complex64)}))
