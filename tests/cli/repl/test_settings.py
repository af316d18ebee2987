import pytest

from martlet.cli.options import SamplingOptions
from martlet.cli.repl.settings import Settings
from martlet.engine.request import SamplingParams
from martlet.errors import UsageError


def test_every_parameter_of_sampling_can_be_set():
    fields = SamplingOptions.__dataclass_fields__
    assert set(Settings.names) == set(fields) == set(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("temperature 0.5", "temperature", 0.5),
        ("top-k 40", "top_k", 40),
        ("  seed   7 ", "seed", 7),
        ("stop 。", "stop", ("。",)),
        ('stop ["a b", "\\n"]', "stop", ("a b", "\n")),
    ],
)
def test_a_value_that_is_set_reaches_the_model(text, name, value):
    settings = Settings({"min_p": 0.1})
    settings.set(text)
    assert settings.arguments() == {"min_p": 0.1, name: value}
    settings.set(f"{name} default")
    assert settings.arguments() == {"min_p": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heat 1", "'heat' cannot be set; there are max_tokens, temperature"),
        ("", "cannot be set"),
        ("top_p", "give top_p a value, as in /set top_p 0.8"),
        ("top_p 7", "top_p is 7.0; it must be a number from 0 to 1"),
        ("top_p nan", "top_p is nan"),
        ("top_k 1.5", "top_k is '1.5'; it must be a whole number"),
        ("temperature warm", "temperature is 'warm'; it must be a number"),
        ('stop ["a"', "a JSON list"),
        ("stop [1]", "stop is"),
    ],
)
def test_a_wrong_value_is_refused_and_changes_nothing(text, message):
    settings = Settings({"seed": 1})
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace("[", r"\[")):
        settings.set(text)
    assert settings.arguments() == {"seed": 1}


def test_what_is_in_force_is_shown_with_what_was_set():
    settings = Settings({"temperature": 0.25})
    rows = dict(settings.describe(SamplingParams(temperature=0.25, stop=("。",))))
    assert rows["temperature"] == "0.25 (set)"
    assert rows["stop"] == '["。"]'
    assert rows["seed"] == "any"
