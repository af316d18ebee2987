import math

import pytest

from martlet.engine.request import MAX_STOP_STRINGS, SamplingParams, Stats
from martlet.errors import UsageError

BAD = [
    ("max_tokens", 0),
    ("max_tokens", True),
    ("max_tokens", 1.0),
    ("max_tokens", "5"),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", True),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_k", False),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("min_p", -0.01),
    ("min_p", 1.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", [1]),
    ("stop", 3),
    ("stop", ["x"] * (MAX_STOP_STRINGS + 1)),
    ("seed", -1),
    ("seed", 1 << 63),
    ("seed", 1.5),
    ("seed", True),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_with_its_field_named(name, value):
    with pytest.raises(UsageError, match=f"^{name} "):
        SamplingParams(**{name: value})


def test_an_error_names_the_value_and_the_limit():
    with pytest.raises(UsageError, match=r"temperature is -3; .* from 0 to 100"):
        SamplingParams(temperature=-3)


def test_the_edges_of_the_ranges_are_allowed():
    SamplingParams(
        max_tokens=1,
        temperature=0,
        top_k=0,
        top_p=1,
        min_p=1,
        presence_penalty=-2,
        frequency_penalty=2,
        seed=(1 << 63) - 1,
    )


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="。").stop == ("。",)
    assert SamplingParams(stop=["。", "！"]).stop == ("。", "！")


def test_what_is_given_comes_before_the_models_defaults_and_those_before_the_tasks():
    params = SamplingParams.from_fields(
        {"temperature": 0.0, "top_k": None, "seed": None},
        {"temperature": 0.5, "top_k": 5, "transformers_version": "4"},
        {"top_k": 7, "top_p": 0.5},
    )
    assert (params.temperature, params.top_k, params.top_p) == (0.0, 5, 0.5)


def test_a_bad_default_of_a_model_is_refused_as_well():
    with pytest.raises(UsageError, match="top_p"):
        SamplingParams.from_fields({}, {"top_p": 7})


def test_speed_counts_the_tokens_after_the_first():
    stats = Stats("length", 5, 11, prefill_seconds=3.0, decode_seconds=2.0, seed=0)
    assert stats.tokens_per_second == 5.0
    assert stats.time_to_first_token_seconds == 3.0
    assert Stats("eos", 5, 1, 1.0, 0.0, 0).tokens_per_second == 0.0
