import pytest
import torch

from martlet.compression.gptq import squared_output
from martlet.compression.groups import quantize_groups
from martlet.compression.scaling import Consumer, best_factors, fold, rescale_hessian
from martlet.compression.walk import Walk
from martlet.models.architecture import LinearInput, stacks_of
from martlet.quantization.formats import INT4

CPU = torch.device("cpu")
NAMES = ["gpt2", "llama", "t5", "t5-tied"]


def _logits(architecture, blocks, samples):
    walk = Walk(architecture, samples, CPU, torch.float32, 4)
    for stack in stacks_of(architecture):
        walk.enter(blocks["fixed"], stack)
        for index in range(architecture.num_blocks(stack)):
            walk.run(stack, index, blocks[f"{stack}.{index}"])
        logits = [architecture.head(blocks["fixed"], "decoder", h) for h in walk.inputs()]
        walk.leave(blocks["fixed"], stack)
    return logits[0]


def _factors(count, seed=4):
    return torch.exp(torch.randn(count, generator=torch.Generator().manual_seed(seed)))


def _fold_all(architecture, blocks):
    num_folded = 0
    for name, weights in blocks.items():
        if name == "fixed":
            inputs = [architecture.head_input()]
        else:
            inputs = architecture.linear_inputs(name.partition(".")[0])
        for source in inputs:
            if source.producers:
                fold(weights, source, _factors(weights[source.consumers[0]].shape[1]))
                num_folded += 1
    return num_folded


@pytest.mark.parametrize(
    ("name", "num_folded"), [("gpt2", 2 * 3), ("llama", 2 * 3 + 1), ("t5", 21), ("t5-tied", 20)]
)
def test_folding_factors_into_a_float_model_changes_no_logits(
    name, num_folded, tiny_model, random_samples
):
    model = tiny_model(name)
    architecture = model.architecture
    samples = random_samples(architecture, [12, 12])
    blocks = {block: dict(weights) for block, weights in model.blocks.items()}
    before = _logits(architecture, blocks, samples)
    assert _fold_all(architecture, blocks) == num_folded
    after = _logits(architecture, blocks, samples)
    assert not torch.equal(before, after)  # something has been folded
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_of_a_block_reads_one_of_the_inputs_of_the_table(name, tiny_model):
    architecture = tiny_model(name).architecture
    for spec in architecture.block_specs():
        linears = [tensor.name for tensor in spec.tensors if tensor.kind == "linear"]
        if spec.name == "fixed":
            assert set(linears) <= set(architecture.head_input().consumers)
            continue
        stack = spec.name.partition(".")[0]
        consumers = [n for source in architecture.linear_inputs(stack) for n in source.consumers]
        assert sorted(consumers) == sorted(linears)


def test_factors_are_found_where_few_channels_carry_most():
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 96, generator=random)
    inputs[:, [5, 50]] *= 25
    hessian = inputs.t() @ inputs / len(inputs)
    weight = torch.randn(40, 96, generator=random)
    factors = best_factors([Consumer(weight, INT4)], hessian, inputs.abs().mean(0))
    assert factors is not None
    assert factors[5] > 1.5 * factors.median()
    # Compared on the same terms: both know which inputs count.
    scaled = rescale_hessian(hessian.clone(), factors)
    rounded = quantize_groups(weight * factors, INT4, importance=scaled.diagonal())
    plain = quantize_groups(weight, INT4, importance=hessian.diagonal())
    after = squared_output(rounded.dequantize() / factors - weight, hessian).sum()
    assert after < 0.8 * squared_output(plain.dequantize() - weight, hessian).sum()


def test_the_hessian_follows_its_input():
    inputs, factors = torch.randn(50, 16), _factors(16)
    divided = inputs / factors
    torch.testing.assert_close(
        rescale_hessian(inputs.t() @ inputs, factors), divided.t() @ divided, rtol=1e-3, atol=1e-3
    )


def test_only_the_rows_that_make_the_input_are_divided():
    weights = {"a": torch.ones(6, 4), "b": torch.ones(6), "c": torch.ones(3, 2)}
    before = dict(weights)
    fold(weights, LinearInput(("c",), ("a", "b"), first_row=4), torch.tensor([2.0, 4.0]))
    assert weights["a"][:4].eq(1).all()
    assert weights["a"][4:, 0].tolist() == [0.5, 0.25]
    assert weights["b"].tolist() == [1, 1, 1, 1, 0.5, 0.25]
    assert weights["c"][0].tolist() == [2, 4]
    assert before["c"].eq(1).all()
