"""Gradients that come one block at a time equal those of the whole model at once."""

import pytest
import torch

from martlet.compression import teacher
from martlet.compression.end_to_end import Student, held_out_loss, train_on
from martlet.compression.fitted import FittedBlock
from martlet.compression.nearest import quantize_matrix
from martlet.compression.teacher import measure_targets
from martlet.compression.walk import Walk
from martlet.models.architecture import stacks_of
from martlet.quantization.formats import parse_format

CPU = torch.device("cpu")
NAMES = ["gpt2", "llama", "t5", "t5-tied"]


def _student(model, **options):
    """Everything that has integers in int4, embedding and head in int8."""
    blocks = {}
    for spec in model.architecture.block_specs():
        kinds = {tensor.name: tensor.kind for tensor in spec.tensors}
        form = parse_format("int8" if spec.name == "fixed" else "int4-g32-asym")
        blocks[spec.name] = FittedBlock(
            {
                name: weight if kinds[name] == "other" else quantize_matrix(weight, form)
                for name, weight in model.block(spec.name).items()
            }
        )
    numbers = {name: block.start(CPU) for name, block in blocks.items()}
    return Student(model.architecture, blocks, numbers, CPU, torch.float32, **options)


def _targets(model, samples):
    walk = Walk(model.architecture, samples, CPU, torch.float32, 1)
    for stack in ("encoder", "decoder") if model.architecture.has_encoder else ("decoder",):
        walk.enter(model.block("fixed"), stack)
        for index in range(model.architecture.num_blocks(stack)):
            walk.run(stack, index, model.block(f"{stack}.{index}"))
        if stack == "encoder":
            walk.leave(model.block("fixed"), stack)
    return measure_targets(walk, model.block("fixed"), 12)


def _at_once(student, samples, targets):
    """The mean loss and all gradients by one graph over the whole model, sample by sample."""
    numbers = {
        block: {name: number.clone().requires_grad_() for name, number in own.items()}
        for block, own in student.numbers.items()
    }
    dense = {
        name: block.dense(numbers[name], CPU, torch.float32)
        for name, block in student.blocks.items()
    }
    loss = 0.0
    for number, sample in enumerate(samples):
        walk = student.walk([sample])
        (batch,) = walk.batches
        walk.hold(dense["fixed"])
        for stack in stacks_of(student.architecture):
            hidden, _ = walk.embed(batch, stack)
            for index in range(student.architecture.num_blocks(stack)):
                step, cache = walk.context(batch, stack)
                weights = dense[f"{stack}.{index}"]
                hidden = student.architecture.block(stack, index, weights, hidden, step, cache)
            hidden = student.architecture.head(dense["fixed"], stack, hidden)
            batch.encoder_output = hidden
        own = targets.of_samples([number], CPU)
        share = student.cross_entropy
        loss = loss + (1 - share) * teacher.divergence(hidden[0], own)
        chosen = (
            hidden[0].log_softmax(-1)[:-1].gather(1, torch.tensor(sample.decoder_ids[1:])[:, None])
        )
        loss = loss - share * chosen.sum()
    loss = loss / sum(targets.counts)
    loss.backward()
    return float(loss.detach()), numbers


@pytest.mark.parametrize("name", NAMES)
def test_gradients_block_by_block_are_those_of_one_graph(
    name, tiny_model, random_samples, monkeypatch
):
    monkeypatch.setattr(teacher, "_LOGITS_AT_ONCE", 53 * 7)  # the head in several pieces
    model = tiny_model(name)
    samples = random_samples(model.architecture, [12, 17, 9])
    student = _student(model, rows_at_once=2, cross_entropy=0.25)
    targets = _targets(model, samples)
    expected_loss, expected = _at_once(student, samples, targets)
    gradients = {}
    loss = train_on(student, samples, targets, gradients.__setitem__)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    assert float(loss) == pytest.approx(held_out_loss(student, samples, targets), rel=1e-5)
    assert set(gradients) == set(student.blocks)
    for block, numbers in expected.items():
        for key, number in numbers.items():
            if number.grad is None:
                assert key not in gradients[block]
                continue
            error = (gradients[block][key] - number.grad).norm()
            # float32 sums in another order: padding, and gradients that are added up in parts
            assert error <= 2e-5 * number.grad.norm() + 1e-9, (block, key)


def test_a_block_is_updated_before_the_one_in_front_of_it_is_opened(tiny_model, random_samples):
    model = tiny_model("t5")
    samples = random_samples(model.architecture, [9])
    student = _student(model)
    order = []
    train_on(student, samples, _targets(model, samples), lambda name, _: order.append(name))
    assert order == ["decoder.1", "decoder.0", "encoder.1", "encoder.0", "fixed"]
