"""Slots that rest while others step."""

import math

import pytest
import torch

from martlet.kernels import ops
from martlet.kernels.cache_view import IDLE, CacheView
from martlet.quantization.vectors import Int8Vectors, parts_of, quantize_vectors

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_cross", [False, True])
def test_an_idle_slot_is_neither_read_nor_written(is_cross, device):
    """Others may fill its memory meanwhile, as a batch does that reads a new text in pieces."""
    torch.manual_seed(3)
    dtype = torch.float16 if device == "cuda" else torch.float32
    q = torch.randn(3, 256, device=device).to(dtype)
    new = [None, None] if is_cross else [torch.randn_like(q), torch.randn_like(q)]
    memory = torch.randn(2, 3, 4, 32, 64, device=device).to(dtype)
    memory[:, 1] = math.nan
    before = memory.clone()
    lengths = torch.tensor([7, IDLE, 20], dtype=torch.int32, device=device)
    view = CacheView(memory[0], memory[1], lengths)
    mixed = ops.step_attention((q, *new), view, 0.125)
    assert torch.equal(memory[:, 1].isnan(), before[:, 1].isnan())
    alone = [None if x is None else x[[0, 2]] for x in (q, *new)]
    kept = before[:, [0, 2]].contiguous()
    others = ops.step_attention(alone, CacheView(kept[0], kept[1], lengths[[0, 2]]), 0.125)
    assert torch.equal(mixed[[0, 2]], others)
    assert torch.equal(memory[:, [0, 2]], kept)


@pytest.mark.parametrize("device", DEVICES)
def test_an_idle_slot_of_an_int8_cache_is_neither_read_nor_written(device):
    torch.manual_seed(3)
    qkv = [torch.randn(3, 256, device=device) for _ in range(3)]
    keys, values = (quantize_vectors(torch.randn(3, 4, 32, 64, device=device)) for _ in range(2))
    keys.scale[1] = math.nan
    before = [[part.clone() for part in parts_of(memory)] for memory in (keys, values)]
    lengths = torch.tensor([7, IDLE, 20], dtype=torch.int32, device=device)
    mixed = ops.step_attention(qkv, CacheView(keys, values, lengths), 0.125)
    for memory, old in zip((keys, values), before, strict=True):
        for part, was in zip(parts_of(memory), old, strict=True):
            assert torch.equal(part[1].nan_to_num(), was[1].nan_to_num())
            assert not torch.equal(part[0], was[0])
            was[1] = 0
    kept = [Int8Vectors(*(part[[0, 2]] for part in old)) for old in before]
    others = CacheView(kept[0], kept[1], lengths[[0, 2]])
    alone = ops.step_attention([x[[0, 2]] for x in qkv], others, 0.125)
    assert torch.equal(mixed[[0, 2]], alone)
    assert torch.equal(kept[0].data, keys.data[[0, 2]])
    assert torch.equal(kept[1].scale, values.scale[[0, 2]])


@pytest.mark.parametrize("device", DEVICES)
def test_an_idle_slot_has_the_first_position(device):
    """Any row will do, as long as it is a row."""
    weight, positions = torch.randn(50, 32, device=device), torch.randn(10, 32, device=device)
    places = torch.tensor([IDLE, 4, 30], dtype=torch.int32, device=device)
    token_ids = torch.tensor([[3], [4], [5]], device=device)
    out = ops.step_embedding(weight, token_ids, torch.float32, positions, places)
    assert torch.equal(out[:, 0], weight[[3, 4, 5]] + positions[[0, 4, 9]])
