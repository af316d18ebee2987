"""The choice by chance: its definition against the sampler of the CPU, the kernel against both."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.engine.request import SamplingParams
from martlet.engine.sampler import Sampler
from martlet.kernels import ops
from martlet.kernels.sample_state import SETTINGS, SampleState
from martlet.kernels.step_state import StepState

# Every cut alone and together, above and below what the others leave.
SETTINGS_TRIED = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.7},
    {"temperature": 0.3},
    {"temperature": 100.0},
    {"temperature": 1e-30},
    {"temperature": 1e-300},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 1 << 30},
    {"top_p": 0.9},
    {"top_p": 1e-12},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.4, "top_k": 50, "top_p": 0.7, "min_p": 0.02},
    {"temperature": 0.9, "repetition_penalty": 1.2},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.4, "top_p": 0.5},
    {"repetition_penalty": 0.7, "presence_penalty": -1.0, "frequency_penalty": 0.3, "top_k": 9},
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _states(params, logits, num_tokens, device, prompt_ids=()):
    """One slot, as a sampler would begin with it."""
    chances = Sampler(params, logits.shape[-1], prompt_ids).chances(num_tokens)
    sampling = SampleState.allocate(1, logits.shape[-1], num_tokens, torch.device(device))
    settings = [float(getattr(params, name)) for name in SETTINGS]
    sampling.settings[0] = torch.tensor(settings, dtype=torch.float64)
    sampling.seen[0].copy_(chances.seen)
    sampling.output_counts[0].copy_(chances.output_counts)
    sampling.uniforms[0, : len(chances.uniforms)].copy_(chances.uniforms)
    lengths = torch.zeros(1, dtype=torch.int32, device=device)
    return sampling, StepState.allocate(lengths, num_tokens)


def _chosen_on(device, params, rows, suppressed=None, prompt_ids=()):
    """The tokens of successive rows of logits (num_tokens, vocab_size), and log-probabilities."""
    sampling, state = _states(params, rows, len(rows), device, prompt_ids)
    ending = torch.full((1,), -1, dtype=torch.int32, device=device)
    mask = None if suppressed is None else suppressed.to(device)
    for row in rows.to(device):
        ops.sample(row[None], mask, sampling, state)
        ops.finish_step(state, ending)
    count = int(state.num_output)
    assert int(state.status) == 0
    assert int(sampling.num_drawn) == (count if params.temperature else 0)
    return state.output_ids[0, :count].tolist(), state.output_logprobs[0, :count].tolist()


def _chosen_by_sampler(params, rows, suppressed=None, prompt_ids=()):
    sampler = Sampler(params, rows.shape[-1], prompt_ids)
    samples = []
    for row in rows:
        samples.append(sampler.sample(row, suppressed))
        sampler.accept(samples[-1].token_id)
    return [each.token_id for each in samples], [each.logprob for each in samples]


def _logits(num_rows, vocab_size, seed, spread=3.0):
    random = torch.Generator().manual_seed(seed)
    return spread * torch.randn(num_rows, vocab_size, generator=random)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab_size", [2, 33, 1000, 30000, 151936])
@pytest.mark.parametrize("fields", SETTINGS_TRIED, ids=str)
def test_the_same_numbers_draw_the_same_tokens_as_the_sampler(fields, vocab_size, device):
    params = SamplingParams(seed=vocab_size, **fields)
    rows = _logits(6, vocab_size, seed=7)
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[torch.arange(1, vocab_size, 3)] = True
    prompt_ids = range(0, vocab_size, 5)
    expected, expected_logprobs = _chosen_by_sampler(params, rows, mask, prompt_ids)
    token_ids, logprobs = _chosen_on(device, params, rows, mask, prompt_ids)
    assert token_ids == expected
    # float32 sums over the vocabulary
    assert logprobs == pytest.approx(expected_logprobs, abs=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fields", [{"top_k": 100}, {"top_p": 0.5}, {}, {"min_p": 1.0}], ids=str)
@pytest.mark.parametrize("vocab_size", [64, 8192])
def test_equal_scores_stand_in_the_order_of_their_ids(fields, vocab_size, device):
    """A flat row: where the cut is, and where the draw falls, is known without any sampler."""
    params = SamplingParams(seed=1, **fields)
    token_ids, _ = _chosen_on(device, params, torch.zeros(40, vocab_size))
    num_kept = vocab_size
    if "top_k" in fields:
        num_kept = min(fields["top_k"], vocab_size)
    elif "top_p" in fields:
        num_kept = vocab_size // 2
    uniforms = Sampler(params, vocab_size).chances(40).uniforms
    assert token_ids == (uniforms * num_kept).to(torch.int64).tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_ties_at_the_edge_of_a_cut_keep_the_lowest_ids(device):
    row = torch.full((5000,), -3.0)
    row[[4000, 17, 2500, 990]] = 2.0
    row[[-1, 1]] = 2.5
    for fields in ({"top_k": 4}, {"top_p": 0.6}):
        params = SamplingParams(seed=3, **fields)
        token_ids, _ = _chosen_on(device, params, row.expand(200, -1))
        # 2 e^2.5 + 4 e^2 + 4994 e^-3 = 302: 0.6 of it are 181, of which these are but 54.
        if "top_k" in fields:
            assert set(token_ids) == {1, 4999, 17, 990}
        else:
            kept = math.ceil(
                (0.6 * _mass(row) - 2 * math.exp(2.5) - 4 * math.exp(2)) / math.exp(-3)
            )
            low = [i for i in range(5000) if row[i] == -3.0][:kept]
            assert set(token_ids) <= {1, 4999, 4000, 17, 2500, 990, *low}
            assert max(set(token_ids) & set(low)) > 0.8 * low[-1]


def _mass(row):
    return float(row.double().exp().sum())


@pytest.mark.parametrize("device", DEVICES)
def test_both_zeros_are_equal(device):
    row = torch.zeros(64)
    row[::2] = -0.0
    token_ids, _ = _chosen_on(device, SamplingParams(seed=2, top_k=8), row.expand(50, -1))
    assert set(token_ids) <= set(range(8))


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.floats(0.05, 5.0),
    st.integers(0, 9),
    st.floats(0.1, 1),
    st.integers(0, 1 << 40),
)
def test_the_definition_draws_from_the_candidates_of_the_sampler(
    values, temperature, top_k, top_p, seed
):
    logits = torch.tensor(values)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    (token_id,), _ = _chosen_on("cpu", params, logits[None])
    candidates, _ = Sampler(params, len(values)).candidates(logits)
    probabilities = torch.softmax(logits.double() / temperature, dim=0)
    # Of equal tokens the sampler may take another one across an edge; 1e-9: float64 sums differ.
    assert probabilities[token_id] >= probabilities[candidates].min() * (1 - 1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_slots_have_settings_and_counts_of_their_own(device):
    rows = _logits(1, 500, seed=2)
    params = [SamplingParams(temperature=0), SamplingParams(temperature=0, presence_penalty=2.0)]
    sampling = SampleState.allocate(3, 500, 4, torch.device(device))
    settings = [[float(getattr(params[slot == 1], name)) for name in SETTINGS] for slot in range(3)]
    sampling.settings.copy_(torch.tensor(settings, dtype=torch.float64))
    state = StepState.allocate(torch.zeros(3, dtype=torch.int32, device=device), 4)
    state.is_done[2] = 1
    best, second = rows[0].topk(2).indices.tolist()
    logits = rows.to(device).expand(3, -1).contiguous()
    for expected in ([best, best, best], [best, second, best]):
        ops.sample(logits, None, sampling, state)
        if rows[0, best] - rows[0, second] < 2.0:
            assert state.token_ids.tolist() == expected
    assert sampling.output_counts.sum(dim=1).tolist() == [2, 2, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_cannot_be_chosen_from_is_told_by_the_log_probability(temperature, device):
    params = SamplingParams(temperature=temperature, seed=1)
    sound = torch.zeros(1, 100)
    for bad in (math.nan, math.inf, -math.inf):
        row = sound.clone()
        row[0, 50] = bad
        sampling, state = _states(params, row, 4, device)
        ops.sample(row.to(device), None, sampling, state)
        assert math.isnan(float(state.logprobs))
        assert int(state.status) == 1
        ops.most_probable(row.to(device), None, state)
        assert math.isnan(float(state.logprobs))
    everything = torch.ones(100, dtype=torch.bool, device=device)
    sampling, state = _states(params, sound, 4, device)
    ops.sample(sound.to(device), everything, sampling, state)
    assert float(state.logprobs) == -math.inf
    ops.most_probable(sound.to(device), everything, state)
    assert float(state.logprobs) == -math.inf


@pytest.mark.gpu
@pytest.mark.parametrize("fields", SETTINGS_TRIED, ids=str)
def test_equal_logits_and_numbers_give_equal_tokens_again_and_again(fields):
    """Sums do not depend on which thread comes first."""
    rows = _logits(20, 50000, seed=9, spread=0.01)
    params = SamplingParams(seed=6, **fields)
    assert _chosen_on("cuda", params, rows) == _chosen_on("cuda", params, rows)


@pytest.mark.parametrize("device", DEVICES)
def test_each_slot_may_have_a_mask_of_its_own(device):
    """As texts of different models' formats do that are written in one batch."""
    logits = torch.zeros(3, 5003)
    logits[:, 7], logits[:, 4000] = 5.0, 4.0
    masks = torch.zeros(3, 5003, dtype=torch.bool)
    masks[1, 7] = True
    masks[2, [7, 4000]] = True
    sampling = SampleState.allocate(3, 5003, 4, torch.device(device))
    sampling.settings[:] = torch.tensor([0.0, 0, 1, 0, 1, 0, 0], dtype=torch.float64)
    state = StepState.allocate(torch.zeros(3, dtype=torch.int32, device=device), 4)
    ops.most_probable(logits.to(device), masks.to(device), state)
    assert state.token_ids.tolist() == [7, 4000, 0]
    state.token_ids.zero_()
    ops.sample(logits.to(device), masks.to(device), sampling, state)
    assert state.token_ids.tolist() == [7, 4000, 0]
    assert state.logprobs[2] < state.logprobs[1] < state.logprobs[0]


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_slots_are_a_state_in_the_same_memory(device):
    sampling = SampleState.allocate(4, 100, 4, torch.device(device))
    state = StepState.allocate(torch.zeros(4, dtype=torch.int32, device=device), 4)
    few, few_sampling = state.first(2), sampling.first(2)
    logits = torch.zeros(2, 100, device=device)
    logits[:, 9] = 3.0
    ops.sample(logits, None, few_sampling, few)
    ops.finish_step(few, torch.tensor([9], dtype=torch.int32, device=device))
    assert state.token_ids.tolist() == [9, 9, 0, 0]
    assert state.lengths.tolist() == [1, 1, 0, 0]
    assert state.is_done.tolist() == [1, 1, 0, 0]
    assert sampling.output_counts[:, 9].tolist() == [1, 1, 0, 0]
