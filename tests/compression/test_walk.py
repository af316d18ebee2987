"""A walk computes what the engine computes, one block at a time, and gradients flow through it."""

import pytest
import torch

import martlet
from martlet.compression.walk import Sample, Walk, WholePass, batches_of
from martlet.engine.request import Context

CPU = torch.device("cpu")
NAMES = ["gpt2", "llama", "t5", "t5-tied"]
# float32 both, sums in another order where rows are padded; logits are of the order of 5.
CLOSE = {"rtol": 0.0, "atol": 5e-5}


def _walked(model, samples, batch_size, dtype=torch.float32):
    """The logits of every sample, by walking all of them through one block after the other."""
    architecture = model.architecture
    fixed = model.block("fixed")
    walk = Walk(architecture, samples, CPU, dtype, batch_size)
    for stack in ("encoder", "decoder") if architecture.has_encoder else ("decoder",):
        walk.enter(fixed, stack)
        for index in range(architecture.num_blocks(stack)):
            walk.run(stack, index, model.block(f"{stack}.{index}"))
        if stack == "decoder":
            logits = [architecture.head(fixed, stack, hidden) for hidden in walk.inputs()]
        walk.leave(fixed, stack)
    rows = [row for batch in logits for row in batch]
    return [row[: len(sample.decoder_ids)] for row, sample in zip(rows, samples, strict=True)]


def _with_a_cache(model, sample):
    """The logits of one sample, alone, with the memory that generation uses."""
    architecture, fixed = model.architecture, model.block("fixed")
    like = torch.empty(0)
    cache = architecture.new_cache(1, len(sample.decoder_ids), like)
    for stack in ("encoder", "decoder") if architecture.has_encoder else ("decoder",):
        ids = torch.tensor([sample.ids(stack)])
        own = cache if stack == "decoder" else None
        hidden, step = architecture.embed(fixed, stack, ids, own)
        for index in range(architecture.num_blocks(stack)):
            weights = model.block(f"{stack}.{index}")
            hidden = architecture.block(stack, index, weights, hidden, step, own)
        hidden = architecture.head(fixed, stack, hidden)
        if stack == "encoder":
            cache.set_encoder_output(hidden, [ids.shape[1]])
    return hidden[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_walk_over_padded_batches_equals_each_sample_alone(name, tiny_model, random_samples):
    model = tiny_model(name)
    samples = random_samples(model.architecture, [17, 9, 30, 2, 5])
    for sample, logits in zip(samples, _walked(model, samples, 3), strict=True):
        assert logits.std() > 0.5  # flat logits would let any mistake pass
        torch.testing.assert_close(logits, _with_a_cache(model, sample), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_short_samples_that_a_processor_reads_row_by_row_are_the_same(
    name, tiny_model, random_samples
):
    model = tiny_model(name)
    samples = random_samples(model.architecture, [3, 7, 1])
    for sample, logits in zip(samples, _walked(model, samples, 3), strict=True):
        torch.testing.assert_close(logits, _with_a_cache(model, sample), **CLOSE)


@pytest.mark.parametrize("family", ["cpm1", "cpm2"])
def test_a_walk_gives_the_logits_of_the_engine(family, make_model):
    from martlet.checkpoint.store import open_store

    folder = make_model(family)
    engine = martlet.load(folder, device="cpu")
    sample = Sample(tuple(range(60, 80)), tuple(range(300, 325)) if family == "cpm2" else ())
    context = Context(sample.decoder_ids, sample.encoder_ids or None)
    sequence = engine._model.generator.start(context, room_tokens=0, limit_tokens=None)
    expected = sequence.advance(sample.decoder_ids, last_only=False)
    architecture = engine._model.generator.architecture
    store = open_store(folder)

    class Model:
        block = staticmethod(store.block)

    Model.architecture = architecture
    (logits,) = _walked(Model, [sample], 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected.clone(), rtol=0.0, atol=2e-5)


def test_a_block_that_is_not_kept_leaves_the_inputs_as_they_were(tiny_model, random_samples):
    model = tiny_model("llama")
    walk = Walk(
        model.architecture, random_samples(model.architecture, [4, 6, 5]), CPU, torch.float32, 2
    )
    walk.enter(model.block("fixed"), "decoder")
    before = [hidden.clone() for hidden in walk.inputs()]
    seen = []
    outputs = walk.run("decoder", 0, model.block("decoder.0"), keep=False, observe=seen.append)
    assert seen == walk.batches
    assert all(torch.equal(a, b) for a, b in zip(walk.inputs(), before, strict=True))
    walk.run("decoder", 0, model.block("decoder.0"))
    assert all(torch.equal(a, b) for a, b in zip(walk.inputs(), outputs, strict=True))


def test_batches_pad_at_the_right_and_tell_which_tokens_are_real():
    batches = batches_of([Sample((5, 6, 7)), Sample((8,)), Sample((9, 9))], 2)
    assert [batch.counts("decoder") for batch in batches] == [[3, 1], [2]]
    assert batches[0].token_ids("decoder").tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batches[0].is_real("decoder").tolist() == [[True] * 3, [True, False, False]]


def _loss(model, weights, sample, direction, device="cpu"):
    """A number that depends on every weight of the blocks."""
    architecture, fixed = model.architecture, model.block("fixed")
    cache = WholePass(1)
    for stack in ("encoder", "decoder") if architecture.has_encoder else ("decoder",):
        own = cache if stack == "decoder" else None
        ids = torch.tensor([sample.ids(stack)], device=device)
        hidden, step = architecture.embed(fixed, stack, ids, own)
        for index in range(architecture.num_blocks(stack)):
            block = weights[f"{stack}.{index}"]
            hidden = architecture.block(stack, index, block, hidden, step, own)
        if stack == "encoder":
            hidden = architecture.head(fixed, stack, hidden)
            cache = WholePass(1, hidden, [ids.shape[1]])
    return (hidden * direction.to(device)).sum()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_tokens", [5, 12])
def test_gradients_of_all_weights_agree_with_finite_differences(
    name, num_tokens, tiny_model, random_samples
):
    # Passes of few tokens take another way through attention on a processor.
    model = tiny_model(name).to(torch.float64)
    (sample,) = random_samples(model.architecture, [num_tokens])
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(1, num_tokens, 32, generator=generator, dtype=torch.float64)
    names = [block for block in model.blocks if block != "fixed"]
    leaves = {
        block: {key: weight.clone().requires_grad_() for key, weight in model.block(block).items()}
        for block in names
    }
    _loss(model, leaves, sample, direction).backward()
    for block in names:
        for key, leaf in leaves[block].items():
            step = torch.randn(leaf.shape, generator=generator, dtype=torch.float64) * 1e-6
            moved = [
                _loss(
                    model,
                    {**model.blocks, block: {**model.block(block), key: leaf.detach() + sign}},
                    sample,
                    direction,
                )
                for sign in (step, -step)
            ]
            slope = float(moved[0] - moved[1]) / 2
            expected = float((leaf.grad * step).sum())
            # Rounding of sums near 100 in float64; the slopes are near 1e-4.
            assert slope == pytest.approx(expected, rel=1e-6, abs=1e-11), (block, key)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_gradients_of_the_processor(name, tiny_model, random_samples):
    model = tiny_model(name)
    (sample,) = random_samples(model.architecture, [12])
    direction = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(1))
    gradients = {}
    for device in ("cpu", "cuda"):
        blocks = {
            block: {key: weight.detach().clone().to(device) for key, weight in weights.items()}
            for block, weights in model.blocks.items()
        }
        for block, weights in blocks.items():
            for weight in weights.values():
                weight.requires_grad_(block != "fixed")
        own = type(model)(model.architecture, blocks)
        _loss(own, blocks, sample, direction, device).backward()
        gradients[device] = {
            (block, key): weight.grad.cpu()
            for block, weights in blocks.items()
            for key, weight in weights.items()
            if block != "fixed"
        }
    for key, gradient in gradients["cpu"].items():
        error = (gradients["cuda"][key] - gradient).norm()
        assert error <= 1e-3 * gradient.norm(), key  # float32 sums, some products in TF32
