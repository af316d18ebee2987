"""What architectures say of the inputs of their matrices, for every variant of every family."""

from typing import Any

import pytest
import torch
from oracle_routes import Model, random_ids
from oracle_variants import FAMILIES, VARIANTS, Variant
from torch import Tensor

from martlet.compression.scaling import fold
from martlet.models.config import load_architecture
from martlet.quantization.scheme import ObservedWeight

# The config.json of a model that also sees is flattened before an architecture reads it.
FLAT = [variant for variant in VARIANTS if "text_config" not in FAMILIES[variant.family].sizes]
by_variant = pytest.mark.parametrize("variant", FLAT, ids=lambda variant: variant.id)


def _architecture(variant: Variant) -> Any:
    family = FAMILIES[variant.family]
    config = {"model_type": variant.family, **family.sizes, **variant.options}
    return load_architecture(config if family.renamed is None else family.renamed(config))


def _inputs(model: Model, name: str) -> Any:
    if name == "fixed":
        return (model.architecture.head_input(),)
    return model.architecture.linear_inputs("decoder")


@by_variant
def test_factors_folded_into_what_makes_an_input_change_no_logits(
    variant: Variant, random_model: Any
) -> None:
    model = random_model(_architecture(variant))
    token_ids = random_ids(2, 12)
    before = model.run("decoder", token_ids)
    generator, num_folded = torch.Generator().manual_seed(4), 0
    for name, weights in model.blocks.items():
        for source in _inputs(model, name):
            if source.producers:
                width = weights[source.consumers[0]].shape[1]
                fold(weights, source, torch.exp(0.5 * torch.randn(width, generator=generator)))
                num_folded += 1
    after = model.run("decoder", token_ids)
    assert num_folded >= model.architecture.num_blocks("decoder")
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5 * float(before.abs().max()))


@by_variant
def test_matrices_that_are_said_to_share_an_input_are_given_the_same(
    variant: Variant, random_model: Any
) -> None:
    model = random_model(_architecture(variant))
    seen: dict[str, Tensor] = {}
    linears = {
        tensor.name
        for spec in model.architecture.block_specs()
        for tensor in spec.tensors
        if tensor.kind == "linear" and spec.name == "decoder.1"
    }
    weights = dict(model.blocks["decoder.1"])
    for name in linears:
        weights[name] = ObservedWeight(weights[name], lambda x, name=name: seen.update({name: x}))
    model.blocks["decoder.1"] = weights
    model.run("decoder", random_ids(2, 12))
    inputs = model.architecture.linear_inputs("decoder")
    assert sorted(name for source in inputs for name in source.consumers) == sorted(linears)
    for source in inputs:
        first, *others = (seen[name] for name in source.consumers)
        assert all(torch.equal(first, other) for other in others)
