"""Tensors as a safetensors file, byte for byte from where they lie.

The library's own writer joins a copy of all tensors while it holds Python's lock, which halts training for as long.
Source of the format: the safetensors README. Files are read with the library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def pieces(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file's bytes, in order: header length, header, then every tensor's memory as a view.

    tensors  contiguous, on the host; ValueError for a dtype that no state has
    """
    # The widest first: every tensor then begins at a multiple of its own element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in names:
        tensor = tensors[name]
        assert tensor.is_contiguous()
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name} is {tensor.dtype}; a checkpoint holds {', '.join(map(str, _NAMES))}")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        if tensors[name].numel():
            yield tensors[name].reshape(-1).view(torch.uint8).numpy().data
