import math

import pytest
import torch

import martlet
from martlet.api.comparing import Variant, compare_formats
from martlet.errors import ModelNotFoundError, UsageError

TEXT = "却说那老汉推开门，只见一个人站在那里。" * 8
CPU = {"device": "cpu"}


@pytest.mark.parametrize("family", ["tiny_cpm1", "tiny_cpm2", "tiny_eva"])
def test_formats_are_compared_with_the_first(family, request):
    folder = request.getfixturevalue(family)
    variants = [Variant(folder, form) for form in ("none", "int8", "int4-g32", "int4-g128-asym")]
    exact, eight, four, asymmetric = compare_formats(variants, TEXT, CPU)
    assert (exact.perplexity_change, exact.divergence.kl) == (0, 0)
    assert exact.divergence.top1_agreement == 1
    assert 0 < eight.divergence.kl < four.divergence.kl
    assert [r.format for r in (eight, four, asymmetric)] == ["int8", "int4-g32", "int4-g128-asym"]
    assert 8 < eight.bits_per_weight < 10
    # 4 bits, 16 for 32 inputs, 32 for a row of 32 or 64 inputs, and the floats.
    assert 5 < four.bits_per_weight < 6.5
    for result in (eight, four, asymmetric):
        assert math.isclose(
            1 + result.perplexity_change,
            result.score.perplexity / exact.score.perplexity,
            rel_tol=1e-9,
        )
        assert result.divergence.num_tokens == exact.score.num_tokens


def test_the_divergence_is_that_of_the_raw_logits(tiny_cpm1):
    text = TEXT[:38]  # one window
    _, coarse = compare_formats([Variant(tiny_cpm1), Variant(tiny_cpm1, "int4")], text, CPU)
    logs = []
    for quantize in (None, "int4"):
        model = martlet.load(tiny_cpm1, quantize=quantize, **CPU)
        ids = model.tokenizer.encode(text)
        logs.append(model.logits(ids[:-1]).double().log_softmax(1))
    p, q = logs
    kl = float((p.exp() * (p - q)).sum(1).mean())
    assert math.isclose(coarse.divergence.kl, kl, rel_tol=1e-2)  # kept in float16
    agreed = float((p.argmax(1) == q.argmax(1)).double().mean())
    assert coarse.divergence.top1_agreement == agreed


def test_the_score_is_that_of_the_model_alone(tiny_cpm1):
    (alone,) = compare_formats([Variant(tiny_cpm1)], TEXT, CPU)
    assert alone.score == martlet.load(tiny_cpm1, **CPU).score_text(TEXT)
    assert alone.format == "float32"
    assert alone.bits_per_weight == 32


def test_models_of_other_vocabularies_compare_by_bits_per_character_only(tiny_cpm1, tiny_cpm2):
    _, other = compare_formats([Variant(tiny_cpm1), Variant(tiny_cpm2)], TEXT, CPU)
    assert (other.perplexity_change, other.divergence) == (None, None)
    assert other.score.bits_per_character > 0


def test_progress_runs_over_all_variants(tiny_cpm1):
    seen = []
    variants = [Variant(tiny_cpm1), Variant(tiny_cpm1, "int8")]
    list(compare_formats(variants, TEXT, CPU, lambda *step: seen.append(step)))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total, _ in seen}) == 1
    assert seen[-1][2] == f"{tiny_cpm1} int8"


def test_a_missing_model_is_found_out_before_any_is_loaded(tiny_cpm1, monkeypatch):
    monkeypatch.setattr("martlet.api.comparing.load", None)
    with pytest.raises(ModelNotFoundError):
        next(compare_formats([Variant(tiny_cpm1), Variant("no-such-model")], TEXT, CPU))
    with pytest.raises(UsageError, match="no model"):
        next(compare_formats([], TEXT))


def test_the_logits_that_are_observed_make_the_score(tiny_eva):
    model = martlet.load(tiny_eva, **CPU)
    pieces: list[torch.Tensor] = []
    score = model.score_text(TEXT, observe=pieces.append)
    rows = torch.cat(pieces).double().log_softmax(1)
    targets = torch.tensor(model.tokenizer.encode(TEXT)[-score.num_tokens :])
    nats = -float(rows.gather(1, targets[:, None]).sum())
    assert math.isclose(nats, score.negative_log_likelihood, rel_tol=1e-6)  # float32 beside float64
