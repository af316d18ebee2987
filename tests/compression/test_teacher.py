"""What is kept of a float model's predictions, and how far other predictions are from it."""

import pytest
import torch

from martlet.compression import teacher
from martlet.compression.teacher import Targets, divergence, measure_targets
from martlet.compression.walk import Walk

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ended(tiny_model, random_samples):
    """A model, and a walk that has come to its end."""
    model = tiny_model("gpt2")
    samples = random_samples(model.architecture, [6, 11, 4])
    walk = Walk(model.architecture, samples, CPU, torch.float32, 2)
    walk.enter(model.block("fixed"), "decoder")
    for index in range(2):
        walk.run("decoder", index, model.block(f"decoder.{index}"))
    return model, walk


def _logits(model, walk):
    rows = [
        hidden[batch.is_real("decoder")]
        for batch, hidden in zip(walk.batches, walk.inputs(), strict=True)
    ]
    return model.architecture.head(model.block("fixed"), "decoder", torch.cat(rows)[None])[0]


def test_all_probability_is_kept_in_the_top_or_in_the_rest(ended):
    model, walk = ended
    targets = measure_targets(walk, model.block("fixed"), 8)
    expected = _logits(model, walk).softmax(-1)
    assert targets.counts == (6, 11, 4)
    kept = targets.log_probabilities.float().exp()
    # float16 of logarithms near -4
    torch.testing.assert_close(kept, expected.topk(8).values, rtol=4e-3, atol=0.0)
    total = kept.sum(-1) + targets.log_rest.float().exp()
    torch.testing.assert_close(total, torch.ones(21), rtol=0.0, atol=4e-3)


def test_samples_are_picked_in_any_order(ended):
    model, walk = ended
    targets = measure_targets(walk, model.block("fixed"), 8)
    picked = targets.of_samples([2, 0], CPU)
    assert picked.counts == (4, 6)
    assert torch.equal(picked.token_ids, targets.token_ids[[*range(17, 21), *range(6)]])
    again = Targets.from_state(targets.state())
    assert again.counts == targets.counts
    assert torch.equal(again.log_rest, targets.log_rest)


def test_the_divergence_of_a_model_from_itself_is_nothing(ended):
    model, walk = ended
    targets = measure_targets(walk, model.block("fixed"), 8)
    logits = _logits(model, walk)
    # Second order of a rounding of 2e-3.
    assert abs(float(divergence(logits, targets)) / 21) < 1e-5


@pytest.mark.parametrize("k", [8, 53])
def test_the_divergence_is_that_of_distributions_in_which_the_others_are_one(ended, k):
    model, walk = ended
    targets = measure_targets(walk, model.block("fixed"), k)
    p = _logits(model, walk).double().softmax(-1)
    logits = _logits(model, walk) + torch.randn(21, 53, generator=torch.Generator().manual_seed(0))
    q = logits.double().softmax(-1)
    expected = 0.0
    for row in range(21):
        named = targets.token_ids[row].long()
        mask = torch.ones(53, dtype=torch.bool)
        mask[named] = False
        expected += float((p[row, named] * (p[row, named] / q[row, named]).log()).sum())
        if k < 53:
            rest_p, rest_q = p[row, mask].sum(), q[row, mask].sum()
            expected += float(rest_p * (rest_p / rest_q).log())
    assert float(divergence(logits, targets)) == pytest.approx(expected, rel=2e-3)


def test_rows_of_logits_come_in_pieces(ended, monkeypatch):
    model, walk = ended
    whole = measure_targets(walk, model.block("fixed"), 4)
    monkeypatch.setattr(teacher, "_LOGITS_AT_ONCE", 53 * 3)
    assert teacher.row_chunks(7, 53) == [(0, 3), (3, 6), (6, 7)]
    pieces = measure_targets(walk, model.block("fixed"), 4)
    assert torch.equal(whole.token_ids, pieces.token_ids)
