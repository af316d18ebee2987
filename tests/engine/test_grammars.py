import gc
import json
import sys
import time
import weakref
from functools import partial

import pytest

from martlet.engine import grammars as grammars_module
from martlet.engine.grammars import Grammars, grammars_of
from martlet.engine.schema_check import schema_of
from martlet.errors import UsageError
from martlet.tokenizers.tokenizer import PieceTokenizer, SpecialTokens


class Pieces(PieceTokenizer):
    """A vocabulary of these pieces and an end; a piece that begins a text loses its space."""

    def __init__(self, pieces, strips=False):
        self.pieces = [b"", *(piece.encode() for piece in pieces)]
        self.vocab_size = len(self.pieces)
        self.special = SpecialTokens(eos=0)
        self._strips = strips

    def encode(self, text):
        raise NotImplementedError

    def token_bytes(self):
        return list(self.pieces)

    def start_decoding(self):
        is_start = self._strips

        def push(token_id):
            nonlocal is_start
            piece = self.pieces[token_id]
            bare, is_start = is_start, False
            return piece.lstrip(b" ") if bare else piece

        return push


ASCII = [chr(code) for code in range(32, 127)]


@pytest.fixture(scope="module")
def byte_pieces():
    return Pieces(ASCII)


def _schema(schema):
    return schema_of({"type": "json_schema", "schema": schema})


def _accepts(tokenizer, schema, text):
    """Whether a text, piece by piece, is whole JSON of that schema."""
    matcher = grammars_of(tokenizer).matcher(_schema(schema))
    ids = [tokenizer.pieces.index(character.encode()) for character in text]
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


PERSON = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("text", ['{"a":1,"b":["x"]}', '{"a": 1, "b": ["x", "y z"]}'])
def test_what_fits_the_schema_is_taken_with_one_space_or_none(byte_pieces, text):
    assert _accepts(byte_pieces, PERSON, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":  1,"b":[]}',
        ' {"a":1,"b":[]}',
        '{"a":1,"b":[]} ',
        '{ "a":1,"b":[]}',
        '{"a":1}',
        '{"a":"x","b":[]}',
        '{"b":[],"a":1}',
        '{"a":1,"b":[],"c":1}',
    ],
)
def test_what_does_not_fit_is_not_taken_nor_are_more_spaces(byte_pieces, text):
    assert not _accepts(byte_pieces, PERSON, text)


def test_a_schema_cannot_switch_its_own_checks_off(byte_pieces):
    with pytest.raises(UsageError, match="x-guidance"):
        _accepts(byte_pieces, {"x-guidance": {"lenient": True}}, "{}")


def test_where_a_first_space_is_not_shown_it_may_be_written():
    tokenizer = Pieces([*ASCII, " {"], strips=True)
    for pieces, is_taken in (([" {", "}"], True), (["{", "}"], True), ([" ", " ", "{"], False)):
        ids = [tokenizer.pieces.index(piece.encode()) for piece in pieces]
        matcher = grammars_of(tokenizer).matcher({"type": "object"})
        assert (matcher.try_consume_tokens(ids) == len(ids)) == is_taken
        assert not is_taken or json.loads(tokenizer.decode(ids)) == {}


def test_a_vocabulary_without_brackets_cannot_write_json():
    pieces = [piece for piece in ASCII if piece not in "{}"]
    with pytest.raises(UsageError, match=r"cannot write JSON: it has no token for \{ \}; ask"):
        Grammars(Pieces(pieces))


def test_pieces_that_depend_on_their_neighbours_are_not_written():
    class English(Pieces):
        def token_bytes(self):
            return [None if piece in (b"{", b"and") else piece for piece in self.pieces]

    with pytest.raises(UsageError, match=r"cannot write JSON: it has no token for \{;"):
        Grammars(English([*ASCII, "and"]))


def test_words_that_the_vocabulary_does_not_have_are_named(byte_pieces):
    grammars = grammars_of(byte_pieces)
    for schema in ({"properties": {"名": {}}}, {"enum": ["a", "名"]}, {"required": ["名"]}):
        with pytest.raises(UsageError, match="cannot write '名' of the schema: it has no token"):
            grammars.matcher(_schema(schema))


def test_a_word_may_be_made_of_pieces_that_a_greedy_cut_would_miss():
    tokenizer = Pieces([*ASCII, "名字很", "很长", "名字"])
    assert grammars_of(tokenizer).matcher(_schema({"const": "名字很长"}))
    with pytest.raises(UsageError, match="cannot write '名字很很'"):
        grammars_of(tokenizer).matcher(_schema({"const": "名字很很"}))


def _laughs(**rest):
    """Definitions that name the next one twice, so that 2**25 intersections must be made."""
    defs = {
        f"a{i}": {
            "type": "object",
            "properties": {
                "x": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"minProperties": 0}]},
                "y": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"maxProperties": 9}]},
            },
        }
        for i in range(25)
    }
    return {"$defs": {**defs, "a25": {"type": "string"}}, "$ref": "#/$defs/a0", **rest}


HOSTILE = {
    "no end": _laughs(),
    "references to itself": {"$ref": "#"},
    "references in a circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "an empty intersection": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "a missing reference": {"$ref": "#/$defs/nowhere"},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "wide intersections": {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}": {}}}, {"properties": {f"b{i}": {"type": "null"}}}]}
            for i in range(20)
        ]
    },
    "an unknown format": {"type": "string", "format": "weird"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_soon(byte_pieces, name):
    start = time.monotonic()
    with pytest.raises(UsageError, match="the JSON schema cannot be followed: ") as refused:
        grammars_of(byte_pieces).matcher(_schema(HOSTILE[name]))
    assert time.monotonic() - start < 20  # two seconds where the machine is not busy
    message = str(refused.value)
    assert "\n" not in message
    assert "json: %json" not in message
    assert len(message) < 300
    # Nothing is left behind: the next schema is taken.
    assert _accepts(byte_pieces, {"const": 1}, "1")


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "foo**", "a{1000000}", "((a{1,1000}){1,1000}){1,1000}", "(x+x+)+y"]
)
def test_patterns_that_other_engines_choke_on_are_followed(byte_pieces, pattern):
    matcher = grammars_of(byte_pieces).matcher(_schema({"type": "string", "pattern": pattern}))
    ids = [byte_pieces.pieces.index(piece) for piece in (b'"', b"a", b"a")]
    start = time.monotonic()
    matcher.try_consume_tokens(ids)
    matcher.compute_bitmask()
    assert not matcher.is_error()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no end", r"took more than \d s"), ("references in a circle", "no text fits it")],
)
def test_a_refusal_says_why(byte_pieces, name, reason):
    with pytest.raises(UsageError, match=reason):
        grammars_of(byte_pieces).matcher(_schema(HOSTILE[name]))


def test_a_child_that_dies_is_a_refusal(byte_pieces, monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import os; os.abort()")
    monkeypatch.setattr(grammars_module, "_CHILD", child)
    with pytest.raises(UsageError, match=r"took too much memory \(status -6\)"):
        grammars_of(byte_pieces).matcher(_schema({"const": "dies"}))


def test_a_grammar_is_made_once_and_every_text_has_its_own_place_in_it(byte_pieces, monkeypatch):
    grammars = Grammars(byte_pieces)
    first = grammars.matcher(_schema(PERSON))
    monkeypatch.setattr(grammars_module, "_try_in_child", partial(pytest.fail, "made again"))
    second = grammars.matcher(_schema(PERSON))
    assert first.consume_token(byte_pieces.pieces.index(b"{"))
    assert second.compute_bitmask() != first.compute_bitmask()


def test_only_the_grammars_asked_for_last_are_kept(byte_pieces, monkeypatch):
    made = []
    monkeypatch.setattr(grammars_module, "_try_in_child", lambda _, grammar: made.append(grammar))
    monkeypatch.setattr(grammars_module, "_MOST_KEPT", 2)
    grammars = Grammars(byte_pieces)
    for number in (1, 2, 1, 3, 1, 2):
        grammars.matcher({"const": number})
    assert [json.loads(text.split("%json ")[1])["const"] for text in made] == [1, 2, 3, 2]


def test_grammars_live_as_long_as_their_tokenizer():
    tokenizer = Pieces(ASCII)
    grammars = weakref.ref(grammars_of(tokenizer))
    assert grammars_of(tokenizer) is grammars()
    del tokenizer
    gc.collect()
    assert grammars() is None


def test_without_the_package_the_way_to_get_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r'pip install "martlet\[structured\]"'):
        Grammars(Pieces(ASCII))
