import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.engine.request import SamplingParams
from martlet.engine.sampler import Sampler
from martlet.errors import MartletError

logit_rows = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)


def _candidates(logits, **fields):
    token_ids, probabilities = Sampler(SamplingParams(**fields), len(logits)).candidates(logits)
    return token_ids.tolist(), probabilities.tolist()


@given(logit_rows, st.integers(1, 50))
def test_top_k_leaves_the_k_best(logits, top_k):
    token_ids, _ = _candidates(logits, top_k=top_k)
    assert len(token_ids) == min(top_k, len(logits))
    worst_kept = min(logits[i] for i in token_ids)
    assert sum(bool(x > worst_kept) for x in logits) < top_k


@given(logit_rows, st.floats(0.01, 0.999))
def test_top_p_leaves_the_smallest_set_that_reaches_p(logits, top_p):
    token_ids, _ = _candidates(logits, top_p=top_p)
    probabilities = torch.softmax(logits.double(), 0)
    kept = probabilities[token_ids]
    slack = 1e-9  # float64 sums in another order
    assert float(kept.sum()) >= top_p - slack
    assert float(kept[:-1].sum()) < top_p + slack
    assert float(kept.min()) >= float(probabilities.sort(descending=True).values[len(kept) - 1])


@given(logit_rows, st.floats(0.001, 1.0))
def test_min_p_leaves_what_is_near_the_best(logits, min_p):
    token_ids, _ = _candidates(logits, min_p=min_p)
    probabilities = torch.softmax(logits.double(), 0)
    ratios = probabilities / probabilities.max()
    for token_id, ratio in enumerate(ratios.tolist()):
        if abs(ratio - min_p) > 1e-9:  # rounding decides on the line itself
            assert (token_id in token_ids) == (ratio >= min_p)


@given(logit_rows, st.floats(0.05, 5.0), st.integers(0, 9), st.floats(0.1, 1), st.floats(0, 0.5))
def test_candidates_are_a_distribution(logits, temperature, top_k, top_p, min_p):
    token_ids, probabilities = _candidates(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    assert len(set(token_ids)) == len(token_ids) >= 1
    assert math.isclose(sum(probabilities), 1, rel_tol=1e-9)  # float64
    assert min(probabilities) >= 0


def test_top_p_of_a_flat_vocabulary_reaches_past_the_first_ranks():
    token_ids, _ = _candidates(torch.zeros(8192), top_p=0.5)  # powers of two: exact
    assert token_ids == list(range(4096))


@given(logit_rows)
def test_temperature_zero_is_the_argmax(logits):
    sample = Sampler(SamplingParams(temperature=0), len(logits)).sample(logits)
    assert logits[sample.token_id] == logits.max()


@given(logit_rows, st.integers(0, 1 << 62))
def test_the_same_seed_draws_the_same_tokens(logits, seed):
    def draw():
        sampler = Sampler(SamplingParams(seed=seed), len(logits))
        return [sampler.sample(logits).token_id for _ in range(8)]

    assert draw() == draw()


@given(logit_rows, st.data())
def test_a_suppressed_token_is_never_drawn(logits, data):
    mask = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    )
    temperature = data.draw(st.sampled_from([0.0, 1.0, 50.0]))
    min_p = data.draw(st.sampled_from([0.0, 0.1]))
    params = SamplingParams(temperature=temperature, min_p=min_p, seed=0)
    sampler = Sampler(params, len(logits))
    if mask.all():
        with pytest.raises(MartletError, match="suppressed"):
            sampler.sample(logits, mask)
    else:
        assert not any(mask[sampler.sample(logits, mask).token_id] for _ in range(8))


def test_draws_follow_the_probabilities():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    sampler = Sampler(SamplingParams(seed=3), 3)
    counts = torch.bincount(
        torch.tensor([sampler.sample(logits).token_id for _ in range(4000)]), minlength=3
    )
    # Standard deviation of a count is at most 32; 150 is more than four of them.
    assert (counts - torch.tensor([2000, 1200, 800])).abs().max() < 150


def test_without_a_seed_each_sampler_draws_its_own():
    assert Sampler(SamplingParams(), 2).seed != Sampler(SamplingParams(), 2).seed


def test_the_seed_in_force_repeats_a_run():
    logits = torch.zeros(1000)
    first = Sampler(SamplingParams(), 1000)
    again = Sampler(SamplingParams(seed=first.seed), 1000)
    assert [first.sample(logits).token_id for _ in range(5)] == [
        again.sample(logits).token_id for _ in range(5)
    ]


def test_a_tiny_temperature_is_the_argmax_and_overflows_nothing():
    logits = torch.tensor([1e30, 1.0, 1.0001e30])
    assert Sampler(SamplingParams(temperature=1e-30), 3).sample(logits).token_id == 2


def test_the_repetition_penalty_counts_prompt_and_output_and_works_on_both_signs():
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), 4, prompt_ids=[0])
    logits = torch.tensor([4.0, 3.0, -1.0, -5.0])
    assert sampler.sample(logits).token_id == 1  # 4 / 2 < 3
    sampler.accept(1)
    assert sampler.sample(logits).token_id == 0  # 3 / 2 < 4 / 2
    negative = torch.tensor([-3.0, -9.0, -5.0, -9.0])
    assert sampler.sample(negative).token_id == 2  # -3 * 2 < -5


def test_presence_counts_once_frequency_each_time_and_neither_the_prompt():
    logits = torch.tensor([1.0, 0.5, 0.0])
    presence = Sampler(SamplingParams(temperature=0, presence_penalty=0.75), 3, prompt_ids=[0])
    assert presence.sample(logits).token_id == 0
    presence.accept(0)
    assert presence.sample(logits).token_id == 1
    presence.accept(0)
    presence.accept(1)
    assert presence.sample(logits).token_id == 0  # 0.25 still beats -0.25

    frequency = Sampler(SamplingParams(temperature=0, frequency_penalty=0.3), 3)
    frequency.accept(0)
    assert frequency.sample(logits).token_id == 0
    frequency.accept(0)
    assert frequency.sample(logits).token_id == 1


def test_the_logprob_is_that_of_the_untouched_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0])
    sampler = Sampler(
        SamplingParams(temperature=0.1, top_k=1, repetition_penalty=1.5), 3, prompt_ids=[0]
    )
    sample = sampler.sample(logits)
    expected = torch.log_softmax(logits, 0)[sample.token_id]
    assert math.isclose(sample.logprob, float(expected), rel_tol=1e-6)  # float32


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error_not_a_token(bad, temperature):
    sampler = Sampler(SamplingParams(temperature=temperature), 3)
    with pytest.raises(MartletError, match="1 of 3 logits that are not finite"):
        sampler.sample(torch.tensor([0.0, bad, 1.0]))


def test_half_precision_logits_are_fine():
    logits = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float16)
    assert Sampler(SamplingParams(temperature=0), 3).sample(logits).token_id == 1
