import pytest
import torch

from martlet.compression.groups import quantize_groups
from martlet.kernels import ops
from martlet.quantization.formats import INT4
from martlet.quantization.scheme import ObservedWeight, tiled


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def _forms():
    weight = _random(6, 32)
    grouped = quantize_groups(weight, INT4)
    return {"float": weight, "float16": weight.half(), "groups": grouped, "tiles": tiled(grouped)}


@pytest.mark.parametrize("form", ["float", "float16", "groups", "tiles"])
def test_observing_changes_no_result(form):
    weight, x = _forms()[form], _random(2, 3, 32)
    norm = ops.Norm(torch.rand(32), None, 1e-6)
    seen = []
    observed = ObservedWeight(weight, seen.append)
    assert torch.equal(ops.linear(x, observed, norm=norm), ops.linear(x, weight, norm=norm))
    assert torch.equal(ops.logits(x, observed), ops.logits(x, weight))
    normal = ops.norm(x, norm)
    assert torch.equal(seen[0], normal.view(6, 32))
    assert torch.equal(seen[1], x.view(6, 32))


def test_each_of_several_linears_shows_the_input_that_it_shares():
    weight, x, seen = _random(6, 32), _random(2, 3, 32), []
    observed = ObservedWeight(weight, lambda rows: seen.append(("a", rows)))
    other = ObservedWeight(weight, lambda rows: seen.append(("b", rows)))
    ops.linears(x, [observed, weight, other], [None, None, None])
    assert [name for name, _ in seen] == ["a", "b"]
    seen.clear()
    ops.gated_linear(x, observed, weight, "silu")
    assert len(seen) == 1
    assert torch.equal(seen[0][1], x.view(6, 32))


def test_an_embedding_has_no_input_to_show():
    weight, seen = _random(6, 32), []
    token_ids = torch.tensor([[1, 5]])
    rows = ops.embedding(ObservedWeight(weight, seen.append), token_ids, torch.float32)
    assert torch.equal(rows, weight[token_ids])
    assert not seen
