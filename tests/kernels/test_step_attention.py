"""Attention of a decode step with what today's models add to it, against the plain definition."""

import itertools

import pytest
import torch

from martlet.kernels import ops, reference
from martlet.kernels.cache_view import CacheView
from martlet.kernels.norm import Norm
from martlet.kernels.turn import Turn
from martlet.quantization.vectors import quantize_vectors

pytestmark = pytest.mark.gpu
CUDA = "cuda"
# The rounding of keys, values and results; float32 differs by the order of sums alone.
ERROR = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 1e-5}
# Heads of queries, of keys and values, and their width: as many queries a key as one block takes,
# as two take evenly and unevenly, and as GLM-4 has.
HEADS = [(4, 4, 64), (10, 2, 128), (8, 1, 128), (7, 1, 64), (32, 2, 128), (4, 2, 256), (3, 3, 96)]


def _options(head_dim, dtype):
    """Every kind alone, and all together."""
    weights = (0.2 * torch.randn(2, head_dim, device=CUDA)).to(dtype)
    quarter = torch.rand(head_dim // 4, device=CUDA)
    whole = torch.rand(head_dim // 2, device=CUDA)
    kinds = {
        "turn": [Turn(quarter), Turn(whole, is_interleaved=True), Turn(quarter, True, 1.3)],
        "norms": [
            tuple(Norm(1 + weight, None, 1e-6) for weight in weights),
            tuple(Norm(weight, None, 1e-6, offset=1.0) for weight in weights),
        ],
        "softcap": [2.0],
        "window": [1, 17],
    }
    alone = [{kind: value} for kind, values in kinds.items() for value in values]
    together = itertools.product(*(values[-1:] for values in kinds.values()))
    return [*alone, *(dict(zip(kinds, values, strict=True)) for values in together)]


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize("capacity", [40, 600])
@pytest.mark.parametrize("dtype", list(ERROR))
def test_each_option_is_that_of_the_definition(num_heads, num_kv_heads, head_dim, capacity, dtype):
    shape = (3, num_kv_heads, capacity, head_dim)
    keys, values = (torch.randn(shape, device=CUDA).to(dtype) for _ in range(2))
    lengths = torch.tensor([0, capacity // 2, capacity - 1], dtype=torch.int32, device=CUDA)
    widths = [num_heads * head_dim] + 2 * [num_kv_heads * head_dim]
    qkv = torch.randn(3, sum(widths), device=CUDA).to(dtype).split(widths, dim=-1)
    for options in _options(head_dim, dtype):
        mine = CacheView(keys.clone(), values.clone(), lengths)
        theirs = CacheView(keys.float(), values.float(), lengths)
        out = ops.step_attention(qkv, mine, head_dim**-0.5, **options).double()
        wide = dict(options)
        if "norms" in options:
            wide["norms"] = tuple(
                Norm(norm.weight.float(), None, norm.eps, norm.offset) for norm in options["norms"]
            )
        float_qkv = [part.float() for part in qkv]
        expected = reference.step_attention(float_qkv, theirs, head_dim**-0.5, **wide).double()
        assert torch.isfinite(out).all()
        assert (out - expected).norm() / expected.norm() < ERROR[dtype], options
        assert torch.allclose(mine.keys.float(), theirs.keys, rtol=1e-2, atol=1e-2), options


def test_a_window_and_head_norms_over_an_int8_cache_are_those_of_the_definition():
    shape, lengths = (2, 2, 300, 128), torch.tensor([290, 12], dtype=torch.int32, device=CUDA)
    keys, values = (quantize_vectors(torch.randn(shape, device=CUDA)) for _ in range(2))
    qkv = torch.randn(2, 14 * 128, device=CUDA).split([10 * 128, 2 * 128, 2 * 128], dim=-1)
    norm = Norm(1 + 0.1 * torch.randn(128, device=CUDA), None, 1e-6)
    options = {"norms": (norm, norm), "window": 100, "softcap": 5.0}
    both = [
        attend(qkv, CacheView(keys, values, lengths), 128**-0.5, **options)
        for attend in (ops.step_attention, reference.step_attention)
    ]
    # A normalised component that lies between two integers may go to either.
    assert (both[0] - both[1]).norm() / both[1].norm() < 3e-3
