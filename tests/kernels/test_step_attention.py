"""A step over a cache beside the same attention made of its parts, on the host."""

from typing import Any

import pytest
import torch

from martlet.kernels import ops
from martlet.kernels.cache_view import CacheView
from martlet.kernels.turn import Turn

LENGTHS = [0, 5, 11]
HEAD_DIM = 8


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _turned(x: torch.Tensor, turn: Turn | None, position: int) -> torch.Tensor:
    if turn is None:
        return x
    angle = position * turn.frequency
    return ops.rotary(x, turn.factor * angle.cos(), turn.factor * angle.sin(), turn.is_interleaved)


FREQUENCY = torch.tensor([0.9, 0.3, 0.1])
NORMS = tuple(ops.Norm(_random(HEAD_DIM, seed=seed), None, 1e-6, offset=1.0) for seed in (8, 9))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"turn": Turn(FREQUENCY)},
        {"turn": Turn(FREQUENCY, is_interleaved=True, factor=1.3)},
        {"norms": NORMS},
        {"softcap": 0.7},
        {"window": 1},
        {"window": 4},
        {"window": 40},
        {"turn": Turn(FREQUENCY), "norms": NORMS, "softcap": 1.5, "window": 3},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_a_step_attends_as_one_query_of_a_pass(options: dict[str, Any]) -> None:
    q, k, v = (_random(3, heads * HEAD_DIM, seed=i) for i, heads in enumerate((6, 2, 2)))
    keys, values = (_random(3, 2, 16, HEAD_DIM, seed=seed) for seed in (3, 4))
    view = CacheView(keys.clone(), values.clone(), torch.tensor(LENGTHS, dtype=torch.int32))
    ours = ops.step_attention((q, k, v), view, 0.5, **options)
    norms, window = options.get("norms"), options.get("window") or 99
    for slot, length in enumerate(LENGTHS):
        heads = [x[slot].view(1, -1, 1, HEAD_DIM) for x in (q, k)]
        if norms is not None:
            heads = [ops.norm(x, norm) for x, norm in zip(heads, norms, strict=True)]
        query, key = (_turned(x, options.get("turn"), length) for x in heads)
        new = (key, v[slot].view(1, -1, 1, HEAD_DIM))
        seen = [
            torch.cat((old[slot : slot + 1, :, :length], own), dim=2)[:, :, -window:]
            for old, own in zip((keys, values), new, strict=True)
        ]
        expected = ops.attention(query, *seen, scale=0.5, softcap=options.get("softcap"))
        torch.testing.assert_close(ours[slot], expected.flatten(), rtol=0, atol=2e-6)
        torch.testing.assert_close(view.keys[slot, :, length], key[0, :, 0], rtol=0, atol=2e-6)
