import math

import pytest
import torch

import martlet
from martlet.engine.score import score_tokens
from martlet.errors import ContextLengthError, UsageError


@pytest.fixture(scope="module")
def cpm1(tiny_cpm1):
    return martlet.load(tiny_cpm1, device="cpu")


@pytest.fixture(scope="module")
def cpm2(tiny_cpm2):
    return martlet.load(tiny_cpm2, device="cpu")


def test_a_decoder_only_score_is_that_of_the_logits(cpm1):
    context_ids = cpm1.tokenizer.encode("天空是蔚蓝色，")
    ids = cpm1.tokenizer.encode("窗外有千纸鹤")
    logprobs = torch.log_softmax(cpm1.logits([*context_ids, *ids]), dim=1)
    rows = range(len(context_ids) - 1, len(context_ids) + len(ids) - 1)
    expected = sum(float(logprobs[row, i]) for row, i in zip(rows, ids, strict=True))
    score = cpm1.score("天空是蔚蓝色，", "窗外有千纸鹤")
    # float32 sums of a few terms near -10
    assert math.isclose(score.logprob, expected, rel_tol=1e-5)
    assert score.num_tokens == len(ids)
    assert score.num_characters == 6


def test_an_empty_context_is_the_beginning_of_a_document(cpm1):
    ids = cpm1.tokenizer.encode("天空")
    logprobs = torch.log_softmax(cpm1.logits([7, *ids]), dim=1)  # <eod>
    expected = sum(float(logprobs[row, i]) for row, i in enumerate(ids))
    assert math.isclose(cpm1.score("", "天空").logprob, expected, rel_tol=1e-5)  # float32


def test_the_probabilities_of_all_next_tokens_add_up_to_one(cpm2):
    total = sum(
        math.exp(score_tokens(cpm2._model, [500, 600], [token_id])[0])
        for token_id in range(0, 26240, 1312)
    )
    assert 0 < total < 1


def test_a_continuation_is_scored_token_by_token_as_written(cpm2):
    ids = [500, 600, 700]
    together = score_tokens(cpm2._model, [9, 10], ids)
    assert len(together) == 3
    assert score_tokens(cpm2._model, [9, 10], ids[:2]) == pytest.approx(
        together[:2],
        rel=1e-5,  # float32, other matrix shapes
    )


@pytest.mark.parametrize("family", ["cpm1", "cpm2"])
def test_a_text_longer_than_the_context_is_scored_whole(family, request):
    model = request.getfixturevalue(family)
    ids = list(range(1000, 1300))
    logprobs = score_tokens(model._model, [5], ids)
    assert len(logprobs) == 300
    assert all(value < 0 for value in logprobs)


def test_each_part_of_a_long_text_sees_at_least_half_a_context(cpm1):
    ids = list(range(1000, 1100))
    logprobs = score_tokens(cpm1._model, [5], ids)
    # 64 positions: parts of 32 tokens, and the third sees the 32 tokens before it.
    alone = score_tokens(cpm1._model, ids[32:64], ids[64:96])
    assert logprobs[64:96] == pytest.approx(alone, rel=1e-5)  # float32, other matrix shapes


def test_whole_texts_are_scored_with_progress(cpm1, cpm2):
    seen = []
    for model in (cpm1, cpm2):
        score = model.score_text(
            "天空是蔚蓝色，窗外有千纸鹤。" * 10, progress=lambda *x: seen.append(x)
        )
        assert score.num_tokens > 50
        assert seen[-1][0] == seen[-1][1]


def test_eva_scores_the_answer_to_a_turn(tiny_eva):
    eva = martlet.load(tiny_eva, device="cpu")
    assert eva.score("你好", "你也好").logprob < 0
    with pytest.raises(ContextLengthError):
        eva.score("天空是蔚蓝色，" * 40, "好")


def test_there_must_be_something_to_score(cpm1):
    with pytest.raises(UsageError, match="empty"):
        cpm1.score("天空", "")


def test_logits_are_checked_and_usable_with_autograd(cpm1, cpm2):
    logits = cpm1.logits([1, 2, 3])
    assert logits.shape == (3, 30000)
    assert not logits.is_inference()
    for odd in ([30000], [1.5], "天空", [-1]):
        with pytest.raises(UsageError, match="not a whole number from 0 to 29,999"):
            cpm1.logits(odd)
    for array in (torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]).numpy()):
        assert torch.equal(cpm1.logits(array), logits)
    with pytest.raises(UsageError, match="at least one"):
        cpm1.logits([])
    with pytest.raises(ContextLengthError, match="65 tokens"):
        cpm1.logits([5] * 65)
    with pytest.raises(UsageError, match="encoder-decoder"):
        cpm2.logits([5])
