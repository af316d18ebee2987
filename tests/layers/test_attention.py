import pytest
import torch
from torch import Tensor

from martlet.kernels import reference
from martlet.layers.attention import (
    Heads,
    Pass,
    cross_attention,
    merge_heads,
    self_attention,
    split_heads,
)
from martlet.layers.kv_cache import KVCache, KVShape
from martlet.layers.masks import decoder_mask, padding_bias
from martlet.layers.rotary import Rotary, rotation

LIKE = torch.zeros(1)
HEADS = Heads(num_heads=6, num_kv_heads=2, head_dim=4, scale=0.4)
TURN = Rotary(HEADS.head_dim, 100.0).turn(12, torch.device("cpu"))
# float32 on both sides, the order of the sums differs
CLOSE = {"rtol": 0, "atol": 2e-6}


def _qkv(batch: int, num_tokens: int, heads: Heads = HEADS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    widths = (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
    return [
        torch.randn(batch, num_tokens, number * heads.head_dim, generator=generator)
        for number in widths
    ]


def _cache(num_slots: int, max_encoder_tokens: int | None = None) -> KVCache:
    return KVCache(KVShape(2, num_slots, 2, 4, 12, max_encoder_tokens, 5), LIKE)


def _in_steps(qkv: list[Tensor], cache: KVCache, cuts: list[int]) -> Tensor:
    """A decoder's attention, cut into passes, each rotated and masked from where the last ended."""
    mixed = []
    for parts in zip(*(x.split(cuts, dim=1) for x in qkv), strict=True):
        batch, count, _ = parts[0].shape
        starts, counts = cache.lengths, [count] * batch
        bias, is_causal = decoder_mask(starts, count, cache.longest_after(counts), LIKE)
        turns = rotation(TURN, starts, count)
        step = Pass(counts, bias, is_causal, rotation=turns)
        for layer in range(2):
            part = self_attention(parts, HEADS, step, cache, layer)
        cache.advance(counts)
        mixed.append(part)
    return torch.cat(mixed, dim=1)


def test_self_attention_is_its_definition_on_turned_and_split_heads() -> None:
    qkv = _qkv(2, 7)
    turns = rotation(TURN, [0, 0], 7)
    ours = self_attention(qkv, HEADS, Pass([7, 7], None, True, rotation=turns), None, 0)
    q, k, v = (x.view(2, 7, -1, 4).transpose(1, 2) for x in qkv)
    q, k = (reference.rotary(x, turns.cos, turns.sin) for x in (q, k))
    expected = reference.attention(q, k, v, scale=0.4, is_causal=True)
    torch.testing.assert_close(ours, expected.transpose(1, 2).reshape(2, 7, 24), **CLOSE)


@pytest.mark.parametrize("cuts", [[7], [3, 4], [2, 1, 1, 1, 1, 1]], ids=str)
def test_self_attention_through_the_cache_equals_one_pass_without(cuts: list[int]) -> None:
    qkv = _qkv(2, 7)
    turns = rotation(TURN, [0, 0], 7)
    whole = self_attention(qkv, HEADS, Pass([7, 7], None, True, rotation=turns), None, 0)
    torch.testing.assert_close(_in_steps(qkv, _cache(2), cuts), whole, **CLOSE)


def test_the_bias_of_the_pass_is_added_to_the_scores() -> None:
    qkv, bias = _qkv(1, 5), torch.randn(1, 6, 5, 5, generator=torch.Generator().manual_seed(1))
    ours = self_attention(qkv, HEADS, Pass([5], bias, False), None, 0)
    q, k, v = (split_heads(x, x.shape[2] // 4) for x in qkv)
    expected = merge_heads(reference.attention(q, k, v, bias, scale=0.4))
    torch.testing.assert_close(ours, expected, **CLOSE)
    without = self_attention(qkv, HEADS, Pass([5], None, False), None, 0)
    assert (without - ours).abs().max() > 0.1


def test_keys_of_the_encoder_are_projected_once_and_read_by_every_pass() -> None:
    cache, projected = _cache(2, 3), []
    matrices = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))

    def project(encoder_output: Tensor) -> list[Tensor]:
        projected.append(encoder_output)
        return [encoder_output @ matrix for matrix in matrices]

    output = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(4))
    cache.set_encoder_output(output, [3, 2])
    padding = padding_bias([3, 2], 3, LIKE)
    k, v = (split_heads(output @ matrix, 2) for matrix in matrices)
    for num_tokens in (4, 1):
        q = _qkv(2, num_tokens)[0]
        step = Pass([num_tokens] * 2, None, False, cross_bias=padding)
        ours = cross_attention(q, project, HEADS, step, cache, layer=1)
        expected = reference.attention(split_heads(q, 6), k, v, padding, scale=0.4)
        torch.testing.assert_close(ours, merge_heads(expected), **CLOSE)
    assert len(projected) == 1
    assert torch.equal(projected[0], output)


def test_heads_come_together_as_they_were_split() -> None:
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert heads[1, 2, 0].tolist() == x[1, 0, 4:6].tolist()
    assert torch.equal(merge_heads(heads), x)
