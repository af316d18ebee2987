import pytest
import torch

from martlet.kernels import reference
from martlet.layers import windows
from martlet.layers.attention import Heads, Pass, self_attention
from martlet.layers.kv_cache import KVCache, KVShape
from martlet.layers.masks import causal_bias
from martlet.layers.windows import attend_within
from martlet.quantization.kv_form import KV_FORMS

HEADS = Heads(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.4, softcap=3.0)


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [1, 4, 30])
@pytest.mark.parametrize("at_once", [1, 3, 1024])
@pytest.mark.parametrize("starts", [(0, 0), (6, 6), (9, 2)], ids=str)
def test_queries_some_at_a_time_see_their_windows_alone(
    starts: tuple[int, ...], at_once: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_QUERIES_AT_ONCE", at_once)
    num_keys = max(starts) + 11
    q = _random(2, 4, 11, 8, seed=0)
    keys, values = (_random(2, 2, num_keys, 8, seed=seed) for seed in (1, 2))
    ours = attend_within(window, q, (keys, values), starts, HEADS.attend)
    bias = causal_bias(starts, 11, num_keys, q, window)
    whole = reference.attention(q, keys, values, bias, scale=0.4, softcap=3.0)
    torch.testing.assert_close(ours, whole, rtol=0, atol=2e-6)


def test_a_pass_looks_at_no_more_keys_than_its_queries_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_QUERIES_AT_ONCE", 16)
    widths = []

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        widths.append(k.shape[2])
        assert bias.shape[2:] == (q.shape[2], k.shape[2])
        return q

    q, keys = torch.zeros(1, 4, 100, 8), torch.zeros(1, 2, 140, 8)
    attend_within(10, q, (keys, keys), [40], attend)
    assert widths == [25] * 6 + [13]


@pytest.mark.parametrize("form", KV_FORMS)
@pytest.mark.parametrize("cuts", [[20], [1] * 20, [13, 7], [3, 9, 8]], ids=str)
def test_a_text_in_windows_is_the_same_however_it_is_cut(cuts: list[int], form: str) -> None:
    cache = KVCache(KVShape(1, 1, 2, 8, 20, form=form), torch.zeros(1))
    qkv = [_random(1, 20, heads * 8, seed=heads) for heads in (4, 2, 3)]
    qkv[2] = qkv[2][..., :16]
    mixed = []
    for parts in zip(*(x.split(cuts, dim=1) for x in qkv), strict=True):
        step = Pass([parts[0].shape[1]], None, False, window=5)
        mixed.append(self_attention(parts, HEADS, step, cache, 0))
        cache.advance(step.counts)
    q, k, v = (x.view(1, 20, -1, 8).transpose(1, 2) for x in qkv)
    bias = causal_bias([0], 20, 20, q, 5)
    whole = reference.attention(q, k, v, bias, scale=0.4, softcap=3.0)
    ours, expected = torch.cat(mixed, dim=1), whole.transpose(1, 2).flatten(2)
    # An int8 cache rounds components to 1/127 of their vector's largest.
    tolerance = 2e-6 if form == "none" else 0.05
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
