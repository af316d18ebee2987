import pytest

import martlet
from martlet.engine.request import Context, SamplingParams
from martlet.engine.write import complete, continuation_context, write
from martlet.errors import ContextLengthError, UsageError

OPENING = "天空是蔚蓝色，窗外有"


@pytest.fixture(scope="module")
def cpm1(tiny_cpm1):
    return martlet.load(tiny_cpm1, device="cpu")


@pytest.fixture(scope="module")
def cpm2(tiny_cpm2):
    return martlet.load(tiny_cpm2, device="cpu")


def test_cpm1_reads_the_bare_text(cpm1):
    request = write(cpm1._model, OPENING, SamplingParams())
    assert request.context == Context(tuple(cpm1.tokenizer.encode(OPENING)))
    assert request.eos_ids == {7}  # <eod>


def test_cpm2_reads_the_text_and_its_last_sentinel(cpm2):
    request = write(cpm2._model, OPENING, SamplingParams())
    ids = cpm2.tokenizer.encode(OPENING)
    assert request.context == Context((1, 26239), (*ids, 26239))  # <s>, <s_189>
    assert request.eos_ids == {7}  # <eod>


@pytest.mark.parametrize("family", ["cpm1", "cpm2"])
def test_no_control_token_is_written(family, request):
    model = request.getfixturevalue(family)
    control = model.tokenizer.special.control_ids() - {7}
    mask = write(model._model, OPENING, SamplingParams()).constraint.suppressed()
    assert set(mask.nonzero().flatten().tolist()) == control


@pytest.mark.parametrize("family", ["cpm1", "cpm2"])
def test_a_text_longer_than_the_context_is_written(family, request):
    model = request.getfixturevalue(family)
    text = model.write(OPENING, max_tokens=120, seed=3)
    # Random weights choose <eod> with a chance of 1 in 26240 a token.
    assert model.last_stats.output_tokens == 120
    assert len(text) >= 120
    pieces = list(model.write(OPENING, max_tokens=120, seed=3, stream=True))
    assert "".join(pieces) == text


def test_sliding_keeps_the_last_half_of_the_context(cpm1):
    request = write(cpm1._model, OPENING, SamplingParams())
    assert request.window.limit_tokens == 64
    restarted = request.window.restart(range(100, 200))
    assert restarted == Context(tuple(range(168, 200)))


def test_sliding_puts_the_text_so_far_before_cpm2(cpm2):
    request = write(cpm2._model, OPENING, SamplingParams())
    ids = cpm2.tokenizer.encode(OPENING)
    restarted = request.window.restart([100, 101])
    assert restarted == Context((1, 26239), (*ids, 100, 101, 26239))
    restarted = request.window.restart(range(1000, 1200))
    assert restarted.encoder_ids == (*range(1137, 1200), 26239)


@pytest.mark.parametrize("family", ["cpm1", "cpm2"])
def test_a_long_opening_is_read_from_its_end(family, request):
    model = request.getfixturevalue(family)
    assert model.write(OPENING * 30, max_tokens=3, seed=1)


@pytest.mark.parametrize("family", ["cpm1", "cpm2"])
def test_a_prompt_to_complete_must_fit(family, request):
    model = request.getfixturevalue(family)
    with pytest.raises(ContextLengthError, match=r"\d+ tokens .* at most 64"):
        model.generate(OPENING * 30)


def test_completing_does_not_slide(cpm1):
    cpm1.generate(OPENING, max_tokens=200, seed=3)
    num_prompt = len(cpm1.tokenizer.encode(OPENING))
    assert cpm1.last_stats.output_tokens == 64 - num_prompt + 1
    assert cpm1.last_stats.finish_reason == "length"
    assert complete(cpm1._model, OPENING, SamplingParams()).window is None


def test_there_must_be_something_to_go_on_with(cpm1):
    with pytest.raises(UsageError, match="empty"):
        cpm1.write("")


def test_an_eva_cannot_write(tiny_eva):
    eva = martlet.load(tiny_eva, device="cpu")
    with pytest.raises(UsageError, match=r"family eva, which can chat but not write.*cpm1-mini"):
        eva.write("你好")


def test_t5_is_asked_as_it_was_trained(cpm2):
    class T5:
        family = "t5"

        @staticmethod
        def token(name):
            return {"pad": 0, "eos": 1}[name]

    assert continuation_context(T5, [5, 6]) == Context((0,), (5, 6, 1))
