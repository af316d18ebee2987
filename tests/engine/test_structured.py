import json
import re

import pytest
import torch

import martlet
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.grammar_child import LIMITS
from martlet.engine.request import Finished, TokenEvent
from martlet.engine.structured import structured_constraint
from martlet.errors import UsageError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 1, "maximum": 150},
        "code": {"type": "string", "pattern": "^[A-F]{2}-[0-9]{2}$"},
        "weapons": {"type": "array", "items": {"enum": ["刀", "剑"]}, "maxItems": 3},
    },
    "required": ["name", "age", "code", "weapons"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "schema": PERSON}
OBJECT = {"type": "json_object"}
MODELS = ("cpm1-mini", "cpm2-mini", "eva-mini")


@pytest.fixture(scope="module")
def models():
    return {name: martlet.load(name, device="cpu") for name in MODELS}


def _finish_all(model, prompt, format, seeds, **options):
    """(text, how it ended, number of tokens) for each seed, written together."""
    batch = model.batch(BatchLimits(len(seeds), 250, 64 if model.family != "cpm1" else None))
    events = {seed: [] for seed in seeds}
    for seed in seeds:
        prepared = model.prepare("complete", prompt, format=format, seed=seed, **options)
        batch.submit(prepared.request, events[seed].append)
    while batch.step():
        pass
    return [_outcome(events[seed][1:]) for seed in seeds]


def _finish(model, prompt, format, **options):
    request = model.prepare("complete", prompt, format=format, **options).request
    return _outcome(list(model.generator.generate(request)))


def _outcome(events):
    assert isinstance(events[-1], Finished), events[-1]
    stats = events[-1].stats
    assert all(isinstance(event, TokenEvent) for event in events[:-1])
    return "".join(event.text for event in events), stats.finish_reason, stats.output_tokens


def _check_person(person):
    assert list(person) == ["name", "age", "code", "weapons"]
    assert 1 <= len(person["name"]) <= 6
    assert type(person["age"]) is int
    assert 1 <= person["age"] <= 150
    assert re.fullmatch("[A-F]{2}-[0-9]{2}", person["code"])
    assert set(person["weapons"]) <= {"刀", "剑"}
    assert len(person["weapons"]) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_twenty_seeds_give_json_that_fits_the_schema(models, name):
    options = {"max_tokens": 200, "temperature": 1.2}
    outcomes = _finish_all(models[name], "话说武松", FORMAT, range(20), **options)
    for text, reason, _ in outcomes:
        assert reason == "eos"
        _check_person(json.loads(text))
    assert len({text for text, _, _ in outcomes}) > 15  # it is the model that writes


@pytest.mark.parametrize("name", MODELS)
def test_a_json_object_is_whole_wherever_it_ends_by_itself(models, name):
    num_whole = 0
    options = {"max_tokens": 40, "temperature": 1.0}
    for text, reason, num_tokens in _finish_all(
        models[name], "话说武松", OBJECT, range(20), **options
    ):
        assert text.startswith("{")
        if reason == "eos":
            assert isinstance(json.loads(text), dict)
            num_whole += 1
        else:
            assert (reason, num_tokens) == ("length", 40)
    assert num_whole


def test_a_text_that_is_cut_says_length_and_is_a_beginning(models):
    model = models["eva-mini"]
    whole, _, num_tokens = _finish(model, "你是谁", FORMAT, seed=3, max_tokens=200)
    cut, reason, _ = _finish(model, "你是谁", FORMAT, seed=3, max_tokens=num_tokens // 2)
    assert reason == "length"
    assert whole.startswith(cut)


def test_greedy_text_is_json_too(models):
    text = models["cpm2-mini"].generate("话说武松", temperature=0, max_tokens=200, format=FORMAT)
    _check_person(json.loads(text))


def test_a_stream_gives_the_same_pieces_as_the_text(models):
    model = models["cpm1-mini"]
    options = {"seed": 5, "max_tokens": 100, "format": FORMAT}
    whole = model.generate("话说", **options)
    assert "".join(model.generate("话说", stream=True, **options)) == whole


def test_repetition_penalties_cannot_break_it(models):
    text, reason, _ = _finish(
        models["eva-mini"], "你是谁", FORMAT, seed=1, max_tokens=200, repetition_penalty=5.0
    )
    assert reason == "eos"
    _check_person(json.loads(text))


def _constraint(model, format=OBJECT):
    mask = model.prepare("complete", "话说").request.constraint.suppressed()
    return structured_constraint(model._model, format, mask), mask


@pytest.mark.parametrize("name", MODELS)
def test_a_text_may_end_exactly_where_the_grammar_accepts(models, name):
    model = models[name]
    constraint, mask = _constraint(model, {"type": "json_schema", "schema": {"const": {"a": 1}}})
    ends = [i for i in model.tokenizer.special.control_ids() if not mask[i]]
    table = model.tokenizer.token_bytes()
    for character in '{"a":1}':
        suppressed = constraint.suppressed()
        assert suppressed.dtype == torch.bool
        assert suppressed.shape == mask.shape
        assert suppressed[ends].all()
        token_id = table.index(character.encode())
        assert not suppressed[token_id]
        constraint.accept(token_id)
    suppressed = constraint.suppressed()
    assert (~suppressed).nonzero().flatten().tolist() == ends
    constraint.accept(ends[0])


@pytest.mark.parametrize("name", MODELS)
def test_what_the_task_suppresses_stays_suppressed_all_along(models, name):
    model = models[name]
    constraint, mask = _constraint(model)
    table = model.tokenizer.token_bytes()
    for character in '{"天空 a":[1, {}]}':
        suppressed = constraint.suppressed()
        assert suppressed[mask].all()
        # Control tokens and tokens without text can never go on for ever.
        assert all(table[i] for i in (~suppressed).nonzero().flatten().tolist())
        constraint.accept(table.index(character.encode()))


def test_tokens_of_the_same_text_are_all_allowed(models):
    model = models["cpm1-mini"]  # it has pieces with and without a word's beginning
    constraint, _ = _constraint(model)
    table = model.tokenizer.token_bytes()
    for character in '{"':
        constraint.accept(table.index(character.encode()))
    same = [i for i, piece in enumerate(table) if piece == "武".encode()]
    assert len(same) > 1
    assert not constraint.suppressed()[same].any()


def test_a_mask_is_not_changed_by_what_comes_later(models):
    constraint, _ = _constraint(models["cpm2-mini"])
    first = constraint.suppressed()
    kept = first.clone()
    constraint.accept(models["cpm2-mini"].tokenizer.token_bytes().index(b"{"))
    assert not torch.equal(constraint.suppressed(), kept)
    assert torch.equal(first, kept)


def test_a_pattern_of_characters_that_the_vocabulary_lacks_is_an_error_not_a_text(models):
    format = {"type": "json_schema", "schema": {"type": "string", "pattern": "^a\U0001f980b$"}}
    with pytest.raises(UsageError, match="after 2 tokens: the vocabulary has no token that may"):
        models["cpm2-mini"].generate("话说", format=format)


def test_a_schema_that_costs_too_much_with_this_vocabulary_is_refused(models):
    primes = [{"type": "integer", "multipleOf": p} for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)]
    format = {"type": "json_schema", "schema": {"allOf": [*primes, {"multipleOf": 31 * 37}]}}
    with pytest.raises(UsageError, match="the JSON schema cannot be followed"):
        models["cpm2-mini"].generate("话说", format=format)


def test_a_text_whose_grammar_outgrows_its_limits_ends_in_an_error(models, monkeypatch):
    monkeypatch.setitem(LIMITS, "max_lexer_states", 400)
    schema = {"type": "string", "minLength": 900, "maxLength": 1000}
    format = {"type": "json_schema", "schema": schema}
    with pytest.raises(UsageError, match=r"after \d+ tokens: what may follow is too complex"):
        models["cpm2-mini"].generate("话说", max_tokens=900, seed=1, format=format)


def test_a_model_without_an_end_is_refused(models):
    model = models["cpm2-mini"]
    everything = torch.zeros(model.generator.architecture.vocab_size, dtype=torch.bool)
    everything[sorted(model.tokenizer.special.control_ids())] = True
    with pytest.raises(UsageError, match="cpm2-mini has no token that ends a text"):
        structured_constraint(model._model, OBJECT, everything)


def test_a_bad_format_is_refused_before_anything_is_computed(models):
    with pytest.raises(UsageError, match="json_object, or json_schema"):
        models["cpm1-mini"].generate("话说", format={"type": "yaml"})
