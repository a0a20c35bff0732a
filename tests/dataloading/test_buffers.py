"""Buffers come back when, and only when, nobody looks at them."""

from __future__ import annotations

import torch

from dataloading.buffers import Buffers


def test_a_buffer_is_used_again_only_when_its_last_view_is_gone() -> None:
    buffers = Buffers()
    first = buffers.take((4, 6), torch.float32)
    view, address = first.permute(1, 0)[2:], first.data_ptr()
    del first
    assert buffers.take((4, 6), torch.float32).data_ptr() != address  # the view still holds it
    del view
    again = [buffers.take((4, 6), torch.float32) for _ in range(2)]
    assert address in {tensor.data_ptr() for tensor in again}


def test_no_more_is_kept_than_was_in_use_at_once() -> None:
    buffers = Buffers()
    for size in (3, 5, 7) * 20:
        held = [buffers.take((size,), torch.bfloat16) for _ in range(2)]
        del held
    assert len(buffers._arrays) == 2
