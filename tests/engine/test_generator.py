import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import martlet
from martlet.engine.request import Context, Finished, Request, SamplingParams, Suppress, Window
from martlet.errors import CapacityError, ContextLengthError, MartletError

PROMPT = (3, 500, 7000, 12)


# The whole of this file by passes, by decode steps as their definition says, and on a GPU.
WAYS = ["passes", "steps", pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=WAYS)
def writer(tiny_cpm1, request):
    model = martlet.load(tiny_cpm1, device="cuda" if request.param == "gpu" else "cpu")._model
    model.generator.uses_steps = request.param != "passes"
    return model


def _request(task_model, prompt=PROMPT, *, eos_ids=(), window=None, cancel=None, **params):
    params = {"max_tokens": 12, "seed": 5, **params}
    return Request(
        context=Context(tuple(prompt)),
        params=SamplingParams(**params),
        constraint=Suppress(task_model.suppressed(allowed=sorted(eos_ids))),
        eos_ids=frozenset(eos_ids),
        prompt_ids=tuple(prompt),
        window=window,
        cancel=cancel or threading.Event(),
    )


def _run(task_model, request):
    *tokens, finished = task_model.generator.generate(request)
    assert isinstance(finished, Finished)
    return tokens, finished


def _text(tokens, finished):
    return "".join(event.text for event in tokens) + finished.text


def test_greedy_tokens_are_those_of_one_pass_over_the_whole_text(writer):
    tokens, _ = _run(writer, _request(writer, temperature=0))
    ids = [event.token_id for event in tokens]
    sequence = writer.generator.start(Context(PROMPT), len(ids), None)
    logits = sequence.advance([*PROMPT, *ids], last_only=False).cpu().clone()
    logits[:, writer.suppressed()] = -torch.inf
    assert logits[len(PROMPT) - 1 : -1].argmax(dim=1).tolist() == ids


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 1 << 40))
def test_streamed_text_is_the_whole_text_for_the_same_seed(writer, seed):
    tokens, finished = _run(writer, _request(writer, seed=seed))
    again, finished_again = _run(writer, _request(writer, seed=seed))
    assert [event.token_id for event in tokens] == [event.token_id for event in again]
    whole = writer.tokenizer.decode([event.token_id for event in tokens])
    assert _text(tokens, finished) == _text(again, finished_again) == whole


def test_different_seeds_give_different_texts(writer):
    first, _ = _run(writer, _request(writer, seed=1))
    second, _ = _run(writer, _request(writer, seed=2))
    assert [event.token_id for event in first] != [event.token_id for event in second]


def test_the_text_ends_after_max_tokens(writer):
    tokens, finished = _run(writer, _request(writer, max_tokens=5))
    assert len(tokens) == finished.stats.output_tokens == 5
    assert finished.stats.finish_reason == "length"
    assert finished.stats.prompt_tokens == len(PROMPT)
    assert finished.stats.prefill_seconds > 0
    assert finished.stats.decode_seconds > 0


def test_the_token_that_ends_the_text_is_not_shown(writer):
    tokens, _ = _run(writer, _request(writer, temperature=0))
    ids = [event.token_id for event in tokens]
    last = ids[3]
    shorter, finished = _run(writer, _request(writer, temperature=0, eos_ids={last}))
    assert [event.token_id for event in shorter] == ids[: ids.index(last)]
    assert finished.stats.finish_reason == "eos"


def test_a_stop_string_ends_the_text_before_it(writer):
    tokens, finished = _run(writer, _request(writer, temperature=0))
    whole = _text(tokens, finished)
    stop = whole[4:6]
    tokens, finished = _run(writer, _request(writer, temperature=0, stop=["never seen", stop]))
    assert _text(tokens, finished) == whole[: whole.index(stop)]
    assert finished.stats.finish_reason == "stop"
    assert finished.stats.output_tokens < 12


def test_a_stop_string_that_does_not_come_true_is_given_back_at_the_end(writer):
    tokens, finished = _run(writer, _request(writer, temperature=0))
    whole = _text(tokens, finished)
    tokens, finished = _run(writer, _request(writer, temperature=0, stop=[whole[-1] + "!"]))
    assert _text(tokens, finished) == whole
    assert finished.text == whole[-1]


def test_a_cancelled_text_ends_before_the_next_token(writer):
    cancel = threading.Event()
    events = writer.generator.generate(_request(writer, cancel=cancel))
    next(events)
    next(events)
    cancel.set()
    (finished,) = events
    assert finished.stats.finish_reason == "cancelled"
    assert finished.stats.output_tokens == 2


def test_a_closed_iterator_computes_nothing_more(writer):
    events = writer.generator.generate(_request(writer))
    next(events)
    events.close()
    assert list(events) == []


def test_the_caller_is_not_put_into_inference_mode(writer):
    events = writer.generator.generate(_request(writer))
    next(events)
    assert not torch.is_inference_mode_enabled()


def test_a_prompt_beyond_the_positions_is_refused_with_both_numbers(writer):
    request = _request(writer, prompt=[5] * 65)
    with pytest.raises(ContextLengthError, match=r"65 tokens .* at most 64"):
        next(writer.generator.generate(request))


def test_without_a_window_the_text_ends_where_the_positions_end(writer):
    tokens, finished = _run(writer, _request(writer, prompt=[5] * 60, max_tokens=50))
    assert len(tokens) == 5  # the fifth comes from the 64th position
    assert finished.stats.finish_reason == "length"


def test_with_a_window_the_text_goes_on_as_if_asked_anew(writer):
    restarts = []

    def restart(output_ids):
        restarts.append(list(output_ids))
        return Context(tuple(output_ids[-4:]))

    window = Window(limit_tokens=8, restart=restart)
    tokens, _ = _run(writer, _request(writer, max_tokens=20, temperature=0, window=window))
    ids = [event.token_id for event in tokens]
    assert len(ids) == 20
    assert [len(seen) for seen in restarts] == [5, 10, 15]
    fresh, _ = _run(writer, _request(writer, prompt=ids[1:5], max_tokens=5, temperature=0))
    assert [event.token_id for event in fresh] == ids[5:10]


class _EveryThird:
    """Forces one token, every third time."""

    def __init__(self, token_id):
        self.token_id = token_id
        self.accepted = []

    def forced(self):
        return self.token_id if len(self.accepted) % 3 == 0 else None

    def suppressed(self):
        return None

    def accept(self, token_id):
        self.accepted.append(token_id)


def test_forced_tokens_come_without_a_logprob_and_the_model_reads_them(writer):
    constraint = _EveryThird(777)
    request = Request(Context(PROMPT), SamplingParams(max_tokens=7, temperature=0), constraint)
    tokens, _ = _run(writer, request)
    assert [event.token_id == 777 for event in tokens][::3] == [True] * 3
    assert [event.logprob is None for event in tokens][::3] == [True] * 3
    assert constraint.accepted == [event.token_id for event in tokens]
    # The token after a forced one is the one that follows it in a plain pass.
    sequence = writer.generator.start(Context(PROMPT), 9, None)
    logits = sequence.advance([*PROMPT, 777])
    assert tokens[1].token_id == int(logits[0].argmax())


def test_broken_weights_are_reported_and_not_sampled(make_model):
    model = martlet.load(make_model("cpm1", seed=3), device="cpu")._model
    fixed = dict(model.generator.executor.fixed())
    fixed["transformer.ln_f.bias"] = torch.full((32,), torch.nan)
    model.generator.executor._fixed = fixed
    with pytest.raises(MartletError, match="not finite"):
        next(model.generator.generate(_request(model)))


def test_a_cache_that_does_not_fit_is_a_capacity_error(writer, monkeypatch):
    def no_memory(*_):
        # What torch's CPU allocator says; asking for the real thing may succeed by overcommit.
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(writer.generator.architecture, "new_cache", no_memory)
    # Steps keep their memory for the next text, so it is as long as the model's positions.
    num_tokens = 64 if writer.generator.uses_steps else 16
    writer.generator._kept = None
    with pytest.raises(CapacityError, match=f"cache of {num_tokens} tokens"):
        next(writer.generator.generate(_request(writer)))
