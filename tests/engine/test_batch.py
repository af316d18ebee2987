import random
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import martlet
from martlet.engine.batch import Batch, Failed, Started
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.request import Context, Finished, Request, SamplingParams, Suppress, TokenEvent
from martlet.errors import CapacityError, ContextLengthError

OPENINGS = ["天空是蔚蓝色，窗外有", "今天", "我们在公园里散步，看到了很多花", "春"]
VOCABULARY = Path(str(files("martlet"))) / "zoo" / "cpm1-mini" / "chinese_vocab.model"
CHINESE = ("cpm1", {VOCABULARY.name: VOCABULARY})


@pytest.fixture(scope="module")
def cpm1(tiny_cpm1):
    return martlet.load(tiny_cpm1, device="cpu")


@pytest.fixture(scope="module")
def cpm2(tiny_cpm2):
    return martlet.load(tiny_cpm2, device="cpu")


def _writes(model, **options):
    options = {"max_tokens": 14, **options}
    return [
        model.prepare("write", opening, seed=seed, **options).request
        for seed, opening in enumerate(OPENINGS)
    ]


def _batch(model, num_slots=4, slot_tokens=64, encoder_tokens=None, chunk_tokens=256):
    if model.generator.architecture.has_encoder:
        encoder_tokens = 64
    limits = BatchLimits(num_slots, slot_tokens, encoder_tokens, chunk_tokens)
    return Batch(model.generator, limits)


def _context(generator, seed, num_tokens, max_tokens=12):
    """A request of random ids for a model of any kind."""
    random_ids = random.Random(seed)
    ids = tuple(random_ids.randrange(100, 20000) for _ in range(num_tokens))
    has_encoder = generator.architecture.has_encoder
    mask = torch.zeros(generator.architecture.vocab_size, dtype=torch.bool)
    mask[generator.tokenizer.vocab_size :] = True
    return Request(
        Context((5,), ids) if has_encoder else Context(ids),
        SamplingParams(max_tokens=max_tokens, temperature=seed % 2, top_p=0.9, seed=seed),
        Suppress(mask),
        prompt_ids=ids,
    )


@pytest.mark.parametrize(("temperature", "kv_cache"), [(0.0, "none"), (0.9, "none"), (0.9, "int8")])
@pytest.mark.parametrize("name", ["cpm1-mini", "cpm2-mini", "eva-mini"])
def test_a_bundled_model_writes_in_a_batch_what_it_writes_alone(
    name, temperature, kv_cache, batching
):
    model = martlet.load(name, device="cpu", kv_cache=kv_cache)
    options = {"max_tokens": 10, "temperature": temperature, "repetition_penalty": 1.1}
    prepared = []
    for seed, opening in enumerate(OPENINGS):
        options["seed"] = seed
        if name == "eva-mini":
            messages = [{"role": "user", "content": opening}]
            prepared.append(model.prepare("chat", messages, **options))
        else:
            prepared.append(model.prepare("write", opening, **options))
        if name == "cpm2-mini":
            prepared.append(model.prepare("fill", f"{opening}__和__。", **options))
    batch = Batch(model.generator, BatchLimits(5, 64, None if name == "cpm1-mini" else 64))
    together = batching.run(batch, [each.request for each in prepared])
    for heard, each in zip(together, prepared, strict=True):
        request = each.request
        if each.filling is not None:  # its constraint has been used
            pieces = each.filling._pieces
            request = model.prepare("fill", pieces, **{**options, "seed": request.params.seed})
            request = request.request
        batching.require_same(heard, batching.alone(model.generator, request), exactly=True)


@pytest.mark.parametrize("family", ["llama", "t5", "gpt2"])
def test_a_tiny_float_model_writes_in_a_batch_what_it_writes_alone(family, make_model, batching):
    folder = make_model(family, config={"vocab_size": 30000}, tokenizer=CHINESE)
    generator = martlet.load(folder, device="cpu").generator
    has_encoder = generator.architecture.has_encoder
    requests = [_context(generator, seed, 3 + 7 * seed) for seed in range(5)]
    batch = Batch(generator, BatchLimits(3, 64, 64 if has_encoder else None, chunk_tokens=20))
    for heard, request in zip(batching.run(batch, requests), requests, strict=True):
        batching.require_same(heard, batching.alone(generator, request))


@pytest.mark.parametrize("schedule", range(3))
def test_texts_that_join_and_leave_at_any_time_change_nobody_elses(schedule, cpm1, batching):
    rng = random.Random(schedule)
    options = [
        {"max_tokens": rng.randrange(1, 30), "temperature": rng.choice([0, 1.0]), "seed": seed}
        for seed in range(14)
    ]
    openings = [rng.choice(OPENINGS) * rng.choice([1, 1, 3]) for _ in options]
    requests = [
        cpm1.prepare("write", opening, **each).request
        for opening, each in zip(openings, options, strict=True)
    ]
    batch = _batch(cpm1, num_slots=5, chunk_tokens=24)
    heard = [batching.heard() for _ in requests]
    cancelled = set(rng.sample(range(len(requests)), 3))
    waiting = list(range(len(requests)))
    while waiting or batch.step():
        while waiting and rng.random() < 0.5:
            index = waiting.pop()
            batch.submit(requests[index], heard[index], rng.choice("abc"))
        batch.step()
        for index in cancelled:
            if rng.random() < 0.1:
                requests[index].cancel.set()
    batching.require_empty(batch)
    for index, request in enumerate(requests):
        if index in cancelled:
            assert heard[index].reason in ("cancelled", "length", "eos")
        else:
            batching.require_same(heard[index], batching.alone(cpm1.generator, request))


def test_more_texts_than_slots_are_all_written_in_the_lowest_slots_first(cpm1, batching):
    requests = _writes(cpm1) + _writes(cpm1, temperature=0)
    batch = _batch(cpm1, num_slots=3)
    for heard, request in zip(batching.run(batch, requests), requests, strict=True):
        batching.require_same(heard, batching.alone(cpm1.generator, request))
    heard = batching.heard()
    batch.submit(requests[0], heard)
    batch.step()
    assert list(batch._texts) == [0]


def test_what_is_heard_is_a_start_then_tokens_then_an_end(cpm1, batching):
    (heard,) = batching.run(_batch(cpm1), _writes(cpm1)[:1])
    first, *tokens, last = heard.events
    assert first == Started(prompt_tokens=len(cpm1.tokenizer.encode(OPENINGS[0])), seed=0)
    assert all(isinstance(event, TokenEvent) for event in tokens)
    assert isinstance(last, Finished)
    assert last.stats.output_tokens == len(tokens) == 14
    assert last.stats.seed == 0
    assert last.stats.prefill_seconds > 0
    assert last.stats.decode_seconds > 0


def test_a_request_with_stop_strings_ends_before_them_in_a_batch(cpm1, batching):
    whole = batching.alone(cpm1.generator, _writes(cpm1)[0]).text
    requests = _writes(cpm1, stop=[whole[3:5]])
    heard = batching.run(_batch(cpm1), requests)[0]
    assert heard.text == whole[: whole.index(whole[3:5])]
    assert heard.reason == "stop"


def test_an_endless_text_passes_its_window_as_it_does_alone(cpm1, batching):
    requests = _writes(cpm1, max_tokens=150)  # of 64 positions
    for heard, request in zip(batching.run(_batch(cpm1), requests), requests, strict=True):
        alone = batching.alone(cpm1.generator, request)
        assert len(alone.tokens) == 150
        batching.require_same(heard, alone)


def test_an_encoder_reads_again_when_its_window_moves_on(cpm2, batching):
    requests = _writes(cpm2, max_tokens=70)  # a window is 32 tokens
    batch = _batch(cpm2)
    for heard, request in zip(batching.run(batch, requests), requests, strict=True):
        batching.require_same(heard, batching.alone(cpm2.generator, request), exactly=True)


def test_a_window_in_a_small_slot_is_that_of_a_small_context(tiny_cpm1, batching):
    model = martlet.load(tiny_cpm1, device="cpu", slots=2, context=24)
    request = model.prepare("write", OPENINGS[0], max_tokens=60, seed=1).request
    assert request.window.limit_tokens == 24
    (heard,) = batching.run(model.batch(), [request])
    batching.require_same(heard, batching.alone(model.generator, request))


def test_a_full_slot_ends_a_text_that_has_no_window(cpm1, batching):
    request = cpm1.prepare("complete", OPENINGS[0], max_tokens=100, seed=1).request
    num_prompt = len(request.context.decoder_ids)
    (heard,) = batching.run(_batch(cpm1, slot_tokens=20), [request])
    assert heard.reason == "length"
    # The last token is chosen from a full slot and never read.
    assert len(heard.tokens) == 20 - num_prompt + 1
    (heard,) = batching.run(_batch(cpm1), [request])
    batching.require_same(heard, batching.alone(cpm1.generator, request))


def test_a_prompt_that_no_slot_can_take_is_refused_with_both_numbers(cpm1, cpm2):
    request = cpm1.prepare("complete", OPENINGS[2], max_tokens=4).request
    num_prompt = len(request.context.decoder_ids)
    batch = _batch(cpm1, slot_tokens=num_prompt - 1)
    with pytest.raises(ContextLengthError, match=rf"{num_prompt} tokens.*{num_prompt - 1} .*--con"):
        batch.submit(request, print)
    assert batch.step() is False
    _batch(cpm1, slot_tokens=num_prompt).submit(request, print)
    fill = cpm2.prepare("fill", OPENINGS[2] + "__").request
    limits = BatchLimits(1, 64, len(fill.context.encoder_ids) - 1)
    with pytest.raises(ContextLengthError, match=r"in the encoder; use a shorter text"):
        Batch(cpm2.generator, limits).submit(fill, print)


def test_clients_take_turns_whoever_asked_for_more(cpm1, batching):
    requests = [*_writes(cpm1), *_writes(cpm1)[:1]]
    batch = _batch(cpm1, num_slots=1)
    order = []
    for index, client in enumerate("aaaab"):
        batch.submit(
            requests[index],
            lambda event, index=index: isinstance(event, Started) and order.append(index),
            client,
        )
    while batch.step():
        pass
    assert order == [0, 4, 1, 2, 3]


def test_a_cancelled_text_is_gone_with_the_next_step_wherever_it_was(cpm1, batching):
    running, reading, queued = (
        cpm1.prepare("write", opening, max_tokens=500).request
        for opening in (OPENINGS[1], OPENINGS[2] * 3, OPENINGS[3])
    )
    batch = _batch(cpm1, num_slots=2, chunk_tokens=16)
    heard = [batching.heard() for _ in range(3)]
    for request, each in zip((running, reading, queued), heard, strict=True):
        batch.submit(request, each)
    batch.step()
    batch.step()  # a pass of prompts each
    assert [each.is_started for each in heard] == [True, True, False]
    assert heard[0].tokens
    # Some of the second prompt has been read, and some has not.
    state, num_read = batch.state(), len(running.context.decoder_ids) + len(heard[0].tokens) - 1
    assert num_read < state.cache_tokens < num_read + len(reading.context.decoder_ids)
    assert not heard[1].tokens
    for request in (queued, reading, running):
        request.cancel.set()
    assert batch.step() is False
    assert [each.reason for each in heard] == ["cancelled"] * 3
    batching.require_empty(batch)


def test_an_idle_batch_has_nothing_to_do(cpm1):
    batch = _batch(cpm1)
    assert batch.step() is False
    assert batch.state().num_steps_total == 0


class _Breaks(Suppress):
    """A constraint that breaks at one of its tokens."""

    def __init__(self, mask, at, where):
        super().__init__(mask)
        object.__setattr__(self, "left", [at])
        object.__setattr__(self, "where", where)

    def _count(self, where):
        if where == self.where:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise KeyError("broken")

    def forced(self):
        self._count("forced")
        return super().forced()

    def suppressed(self):
        self._count("suppressed")
        return super().suppressed()

    def accept(self, token_id):
        self._count("accept")


@pytest.mark.parametrize("where", ["forced", "suppressed", "accept"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_constraint_that_breaks_ends_its_own_text_alone(where, at, cpm1, batching):
    first, second, *_ = _writes(cpm1)
    broken = Request(
        first.context, first.params, _Breaks(first.constraint.mask, at, where), window=first.window
    )
    failed, heard = batching.run(_batch(cpm1), [broken, second])
    assert "KeyError" in str(failed.error)
    assert isinstance(failed.error.__cause__, KeyError)
    assert len(failed.tokens) == at
    batching.require_same(heard, batching.alone(cpm1.generator, second))


def test_a_text_with_everything_suppressed_fails_alone(cpm1, batching):
    first, second, *_ = _writes(cpm1)
    everything = Suppress(torch.ones_like(first.constraint.mask))
    failed, heard = batching.run(
        _batch(cpm1), [Request(first.context, first.params, everything), second]
    )
    assert "suppressed" in str(failed.error)
    batching.require_same(heard, batching.alone(cpm1.generator, second))


class _Poisoned:
    """An architecture whose hidden state turns into no number where a row reads a token."""

    def __init__(self, architecture, token_id):
        self._architecture, self._token_id = architecture, token_id

    def __getattr__(self, name):
        return getattr(self._architecture, name)

    def embed(self, fixed, stack, token_ids, cache, lengths=None):
        hidden, step = self._architecture.embed(fixed, stack, token_ids, cache, lengths)
        return hidden.masked_fill((token_ids == self._token_id)[..., None], torch.nan), step


@pytest.mark.parametrize("place", ["prompt", "answer"])
def test_numbers_that_are_not_finite_end_their_own_text_and_stay_in_no_slot(
    place, cpm1, batching, monkeypatch
):
    first, second, third, fourth = _writes(cpm1, temperature=0)
    alone = [batching.alone(cpm1.generator, each) for each in (first, second, third, fourth)]
    ids = first.context.decoder_ids if place == "prompt" else [e.token_id for e in alone[0].tokens]
    others = {i for each in (second, third, fourth) for i in each.context.decoder_ids}
    others |= {event.token_id for each in alone[1:] for event in each.tokens}
    poison = next(token_id for token_id in ids if token_id not in others)
    batch = _batch(cpm1, num_slots=2)
    poisoned = _Poisoned(cpm1.generator.architecture, poison)
    monkeypatch.setattr(batch._prefill, "_architecture", poisoned)
    monkeypatch.setattr(batch._steps, "_architecture", poisoned)
    failed, *heard = batching.run(batch, [first, second, third, fourth])
    assert "not finite" in str(failed.error)
    # The third and fourth are written where the first was.
    for each, expected in zip(heard, alone[1:], strict=True):
        batching.require_same(each, expected)


def test_a_listener_that_fails_loses_its_text_and_no_other(cpm1, batching, caplog):
    first, second, *_ = _writes(cpm1)

    def breaks(event):
        raise RuntimeError("the pipe is gone")

    batch = _batch(cpm1)
    batch.submit(first, breaks)
    (heard,) = batching.run(batch, [second])
    batching.require_same(heard, batching.alone(cpm1.generator, second))
    assert caplog.text.count("a listener failed") == 1


def test_a_decode_step_without_memory_gives_up_the_newest_text(cpm1, batching, monkeypatch):
    requests = _writes(cpm1)[:3]
    batch = _batch(cpm1)
    heard = [batching.heard() for _ in requests]
    for request, each in zip(requests, heard, strict=True):
        batch.submit(request, each)
    for _ in range(3):
        batch.step()
    architecture = cpm1.generator.architecture
    head, left = architecture.head, [1]

    def fails_once(*arguments):
        if left[0]:
            left[0] -= 1
            raise MemoryError  # behind the last block, when the tokens have been counted
        return head(*arguments)

    monkeypatch.setattr(architecture, "head", fails_once)
    while batch.step():
        pass
    batching.require_empty(batch)
    assert isinstance(heard[2].events[-1], Failed)
    assert isinstance(heard[2].error, CapacityError)
    assert batch.state().out_of_memory_total == 1
    for each, request in zip(heard[:2], requests, strict=False):
        batching.require_same(each, batching.alone(cpm1.generator, request))


def test_the_state_counts_what_has_been_done(cpm1, batching):
    requests = _writes(cpm1, temperature=0)
    batch = _batch(cpm1, num_slots=2)
    for request in requests:
        batch.submit(request, batching.heard())
    batch.step()
    state = batch.state()
    assert (state.num_running, state.num_waiting) == (2, 2)
    prompts = [len(request.context.decoder_ids) for request in requests]
    assert state.cache_tokens == sum(prompts[:2]) + 2  # and one step each
    assert state.cache_capacity_tokens == 2 * 64
    while batch.step():
        pass
    state = batch.state()
    assert state.prompt_tokens_total == sum(prompts)
    assert state.output_tokens_total == 4 * 14
    assert state.num_steps_total >= 2 * 13
    assert state.streamed_bytes_total == 0


def test_more_rows_than_a_pass_takes_are_written_in_several(cpm1, batching):
    requests = [request for _ in range(5) for request in _writes(cpm1, max_tokens=6)]
    batch = _batch(cpm1, num_slots=20)
    for heard, request in zip(batching.run(batch, requests), requests, strict=True):
        batching.require_same(heard, batching.alone(cpm1.generator, request))


def test_the_most_probable_tokens_are_told_on_request(cpm1, batching):
    request = cpm1.prepare("write", OPENINGS[0], max_tokens=5, temperature=0, top_logprobs=3)
    (heard,) = batching.run(_batch(cpm1), [request.request])
    alone = batching.alone(cpm1.generator, request.request)
    assert [event.top for event in heard.tokens] == [event.top for event in alone.tokens]
    for event in heard.tokens:
        assert len(event.top) == 3
        logprobs = [logprob for _, logprob in event.top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert event.logprob == pytest.approx(dict(event.top)[event.token_id], abs=1e-5)


def test_filling_blanks_in_a_batch_forces_tokens_as_it_does_alone(cpm2, batching):
    texts = ["北京__欢迎__你__。", "今天__天气", "__和__"]
    prepared = [cpm2.prepare("fill", text, max_tokens=7, seed=3) for text in texts]
    together = batching.run(_batch(cpm2), [each.request for each in prepared])
    assert any(event.logprob is None for heard in together for event in heard.tokens)
    for text, each, heard in zip(texts, prepared, together, strict=True):
        # Taken long after the tokens came, as another thread would.
        pieces = [piece for event in heard.events[1:] for piece in each.take(event)]
        fill = cpm2.fill(text, max_tokens=7, seed=3)
        assert each.fill.text == fill.text
        assert each.fill.blanks == fill.blanks
        for blank in each.fill.blanks:
            assert "".join(p.text for p in pieces if p.blank == blank.index) == blank.text
            assert blank.logprob == pytest.approx(sum(e.logprob for e in blank.tokens))
