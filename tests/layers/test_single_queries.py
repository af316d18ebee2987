import pytest
import torch

from martlet.kernels import reference
from martlet.layers.attention import Heads, Pass, self_attention
from martlet.layers.kv_cache import KVCache, KVShape
from martlet.layers.masks import causal_bias
from martlet.layers.single_queries import are_few, attend_each
from martlet.quantization.kv_form import KV_FORMS


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("bias_rows", [None, 1, 3])
@pytest.mark.parametrize("window", [None, 1, 5])
def test_each_query_gathers_from_its_own_first_keys(bias_rows, num_kv_heads, window):
    q = _random(3, 4, 2, 8, seed=0)
    keys, values = (_random(3, num_kv_heads, 20, 8, seed=seed) for seed in (1, 2))
    bias = None if bias_rows is None else _random(bias_rows, 4, 2, 20, seed=3)
    seen = [[3, 4], [19, 20], [7]]
    mixed = attend_each(
        q,
        lambda row, n: (keys[row : row + 1, :, :n], values[row : row + 1, :, :n]),
        seen,
        bias,
        Heads(4, num_kv_heads, 8, scale=0.3).attend,
        window,
    )
    for row, counts in enumerate(seen):
        for query, count in enumerate(counts):
            own, first = None, 0 if window is None else max(0, count - window)
            if bias is not None:
                own = bias[row % bias.shape[0]][None, :, query : query + 1, first:count]
            expected = reference.attention(
                q[row : row + 1, :, query : query + 1],
                keys[row : row + 1, :, first:count],
                values[row : row + 1, :, first:count],
                own,
                scale=0.3,
            )
            got = mixed[row : row + 1, :, query : query + 1]
            torch.testing.assert_close(got, expected)
    assert not mixed[2, :, 1].any()  # padding


@pytest.mark.parametrize("form", KV_FORMS)
def test_a_row_beside_longer_ones_has_the_bits_that_it_has_alone(form):
    heads = Heads(2, 2, 16, 0.25)
    lengths = [3, 30, 17]
    parts = [_random(3, 1, 32, seed=seed) for seed in range(3)]
    cache = KVCache(KVShape(1, 3, 2, 16, 40, form=form), torch.zeros(1))
    old = [_random(3, 2, 30, 16, seed=seed) for seed in (5, 6)]
    cache.append(0, *old, lengths)
    cache.advance(lengths)
    bias = causal_bias(lengths, 1, 31, parts[0])
    together = self_attention(parts, heads, Pass([1, 1, 1], bias, False), cache, 0)
    for row in range(3):
        own = [part[row : row + 1] for part in parts]
        alone = self_attention(own, heads, Pass([1], None, False), cache.rows([row]), 0)
        assert torch.equal(together[row : row + 1], alone)


def test_long_prompts_are_no_single_queries():
    assert are_few(torch.zeros(1, 1, 8, 4))
    assert not are_few(torch.zeros(1, 1, 9, 4))
    assert not are_few(torch.zeros(1, 1, 1, 4, device="meta"))
