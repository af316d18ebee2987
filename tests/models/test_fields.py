from typing import Any

import pytest

from martlet.errors import ModelFileError
from martlet.models.fields import Fields


def test_a_field_that_nobody_asked_for_is_refused_by_name_and_value() -> None:
    fields = Fields({"vocab_size": 5, "swirl": 3})
    assert fields.size("vocab_size") == 5
    with pytest.raises(ModelFileError, match=r"'swirl' = 3, .* delete the field") as caught:
        fields.refuse_unknown()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nothing", [None, False, {}, []])
def test_a_value_that_asks_for_nothing_is_no_unknown_field(nothing: object) -> None:
    Fields({"swirl": nothing}).refuse_unknown()


@pytest.mark.parametrize("value", [0, 0.0, True, "", "no", [0]])
def test_any_other_value_may_ask_for_something(value: object) -> None:
    with pytest.raises(ModelFileError, match="swirl"):
        Fields({"swirl": value}).refuse_unknown()


@pytest.mark.parametrize(
    "ask",
    [
        lambda fields: fields.has("swirl"),
        lambda fields: fields.get("swirl"),
        lambda fields: fields.size("swirl"),
        lambda fields: fields.positive("swirl"),
        lambda fields: fields.require("swirl", 3),
        lambda fields: fields.ignore("swirl"),
    ],
    ids=["has", "get", "size", "positive", "require", "ignore"],
)
def test_who_asks_for_a_field_knows_it(ask: Any) -> None:
    fields = Fields({"swirl": 3})
    ask(fields)
    fields.refuse_unknown()


def test_what_is_said_of_training_storing_and_sampling_is_harmless() -> None:
    Fields({"torch_dtype": "bfloat16", "architectures": ["A"], "temperature": 0.6}).refuse_unknown()


def test_a_group_of_fields_has_its_name_in_errors() -> None:
    group = Fields({"factor": -1, "swirl": 1}, "rope_scaling in config.json")
    for wrong in (
        lambda: group.positive("factor"),
        lambda: group.size("missing"),
        group.refuse_unknown,
    ):
        with pytest.raises(ModelFileError, match=r"^rope_scaling in config\.json (has|lacks)"):
            wrong()


@pytest.mark.parametrize(
    "value", [[1.0], [1.0, 2.0, 3.0], [1.0, "2"], [1.0, True], [1.0, 0.0], [1, float("inf")], "12"]
)
def test_a_list_of_numbers_has_as_many_as_are_wanted(value: object) -> None:
    with pytest.raises(ModelFileError, match="factors"):
        Fields({"factors": value}).numbers("factors", 2)
    assert Fields({"factors": [1, 2.5]}).numbers("factors", 2) == (1.0, 2.5)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ModelFileError) as caught:
        Fields({"swirl" * 100: "x" * 10**6}).refuse_unknown()
    assert len(str(caught.value)) < 400
