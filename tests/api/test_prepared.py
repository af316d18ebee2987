import pytest

import martlet
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.request import Finished
from martlet.errors import UsageError

OPENING = "天空是蔚蓝色，窗外有"


@pytest.fixture(scope="module")
def cpm1(tiny_cpm1):
    return martlet.load(tiny_cpm1, device="cpu", slots=2, context=32)


@pytest.fixture(scope="module")
def cpm2(tiny_cpm2):
    return martlet.load(tiny_cpm2, device="cpu")


@pytest.fixture(scope="module")
def eva(tiny_eva):
    return martlet.load(tiny_eva, device="cpu")


def test_what_is_prepared_is_what_the_methods_of_a_model_run(cpm1, eva):
    request = cpm1.prepare("complete", OPENING, max_tokens=9, seed=1).request
    events = list(cpm1.generator.generate(request))
    assert "".join(event.text for event in events) == cpm1.generate(OPENING, max_tokens=9, seed=1)
    messages = [{"role": "user", "content": OPENING}]
    for kind, payload in (("chat", messages), ("complete", OPENING)):
        request = eva.prepare(kind, payload, max_tokens=9, seed=1).request
        text = "".join(event.text for event in eva.generator.generate(request))
        assert text == eva.chat(messages, max_tokens=9, seed=1)


@pytest.mark.parametrize("kind", ["complete", "write"])
def test_a_prompt_may_be_token_ids(kind, cpm1):
    ids = cpm1.tokenizer.encode(OPENING)
    by_text = cpm1.prepare(kind, OPENING, seed=1).request
    assert cpm1.prepare(kind, ids, seed=1).request.context == by_text.context


@pytest.mark.parametrize("ids", [[1, -1], [30000], [True], ["一"], [1.5], []])
def test_ids_that_are_none_of_the_vocabulary_are_refused(ids, cpm1):
    with pytest.raises(UsageError, match=r"from 0 to 29,999|is empty"):
        cpm1.prepare("complete", ids)


def test_a_dialogue_is_no_list_of_ids(eva):
    with pytest.raises(UsageError, match="give the prompt as a text"):
        eva.prepare("complete", [1, 2])


def test_writing_moves_its_window_in_the_slots_that_were_planned(cpm1):
    assert cpm1.batch_limits.slot_tokens == 32
    assert cpm1.prepare("write", OPENING).request.window.limit_tokens == 32
    assert cpm1.batch().limits == cpm1.batch_limits


def test_a_batch_may_be_of_any_size(cpm2):
    limits = BatchLimits(3, 16, 32, 64)
    assert cpm2.batch(limits).state().cache_capacity_tokens == 3 * (16 + 32)


def test_the_number_of_top_tokens_is_checked(cpm1):
    assert cpm1.prepare("write", OPENING).request.top_logprobs == 0
    assert cpm1.prepare("write", OPENING, top_logprobs=20).request.top_logprobs == 20
    for number in (-1, 21, True, 2.5):
        with pytest.raises(UsageError, match=r"top_logprobs is .*from 0 to 20"):
            cpm1.prepare("write", OPENING, top_logprobs=number)


def test_blanks_take_no_format(cpm2):
    with pytest.raises(UsageError, match="form of their own"):
        cpm2.prepare("fill", "今天__", format={"type": "json_object"})


def test_a_format_holds_the_text_and_leaves_the_rest_of_the_request(cpm1):
    plain = cpm1.prepare("complete", OPENING, seed=3).request
    held = cpm1.prepare("complete", OPENING, seed=3, format={"type": "json_object"}).request
    assert (held.context, held.params, held.eos_ids) == (plain.context, plain.params, plain.eos_ids)
    # What begins a JSON object is fewer tokens than a text may begin with.
    assert held.constraint.suppressed().sum() > plain.constraint.suppressed().sum()


def test_blanks_come_in_pieces_and_then_as_a_whole(cpm2):
    prepared = cpm2.prepare("fill", ["今天", "真好，", "。"], max_tokens=6, seed=4)
    pieces, fill = [], None
    for event in cpm2.generator.generate(prepared.request):
        assert prepared.fill is None
        pieces += prepared.take(event)
        if isinstance(event, Finished):
            fill = prepared.fill
    assert fill.text.startswith("今天")
    for blank in fill.blanks:
        assert "".join(p.text for p in pieces if p.blank == blank.index) == blank.text
        assert tuple(event.token_id for event in blank.tokens) == blank.token_ids


def test_a_text_without_blanks_is_blank_0(cpm1):
    prepared = cpm1.prepare("write", OPENING, max_tokens=5, seed=4)
    events = list(cpm1.generator.generate(prepared.request))
    pieces = [piece for event in events for piece in prepared.take(event)]
    assert pieces == [(event.text, 0, False, None) for event in events if event.text]
    assert prepared.fill is None
