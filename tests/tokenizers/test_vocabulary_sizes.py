"""Numbers of rows and tokens as published checkpoints have them, and hostile vocabularies."""

import copy
import json
import time

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from martlet.errors import ModelFileError, VocabularyError
from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.load import check_vocabulary

from .made_tokenizers import CORPUS, byte_fallback, byte_level, with_flags, write_folder

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISIBLE = ["<think>", "</think>"]


def _tokenizer(folder, state, **config):
    write_folder(folder, state, **config)
    return HuggingFaceTokenizer.from_json(folder / "tokenizer.json")


@pytest.fixture
def qwen(tmp_path):
    return _tokenizer(tmp_path, byte_level(SPECIAL, VISIBLE), eos_token="<|im_end|>")


@pytest.mark.parametrize("spare", [0, 1, 8, 63, -1, -2, -5])
def test_a_few_rows_more_or_control_tokens_without_a_row_are_accepted(qwen, spare):
    rows = qwen.vocab_size + spare
    check_vocabulary(qwen, rows)
    assert qwen.vocab_size <= rows
    assert all(i < rows for i in qwen.special.control_ids())


@pytest.mark.parametrize("rows", [64 * 7, 64 * 40, 64 * 70])
def test_tables_are_rounded_up_far(qwen, rows):
    check_vocabulary(qwen, rows)


@pytest.mark.parametrize("rows", [64 * 80, 1000, 360, 300, 0])
def test_the_tables_of_other_models_are_refused(qwen, rows):
    size = qwen.vocab_size
    with pytest.raises(VocabularyError, match=f"{size} entries but the model {rows}"):
        check_vocabulary(qwen, rows)
    assert qwen.vocab_size == size


def test_a_token_without_a_row_is_text_from_then_on(qwen):
    names = qwen.template_names(VISIBLE)
    last = qwen.vocab_size - 1
    assert qwen.encode_spelled("</think>", names) == [last]
    check_vocabulary(qwen, last)
    for text in ("</think>", "<think></think>"):
        names = qwen.template_names(VISIBLE)
        for token_ids in (qwen.encode(text), qwen.encode_spelled(text, names)):
            assert max(token_ids) < last
            assert qwen.decode(token_ids) == text
    check_vocabulary(qwen, last - 2)  # the end of text is gone as well
    assert qwen.special.eos is None
    assert qwen.decode(qwen.encode_spelled("<|im_end|>", qwen.template_names([]))) == "<|im_end|>"


def test_a_word_without_a_row_is_not_forgotten(tmp_path):
    tokenizer = _tokenizer(tmp_path, byte_level(SPECIAL, ["martlet"]))
    with pytest.raises(VocabularyError, match="do not belong together"):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1)


SHAPES = {
    "split": byte_level(SPECIAL, VISIBLE),
    "plain": byte_level(SPECIAL, has_split=False),
    "spaces": byte_level(SPECIAL, ["  ", "    "]),
    "flags": with_flags(
        byte_level(SPECIAL, ["martlet"]),
        **{"<|im_end|>": {"rstrip": True, "lstrip": True}, "martlet": {"single_word": True}},
    ),
    "prefix": byte_fallback(["<|end|>"]),
    "first": byte_fallback(["<|end|>"], "first"),
    "never": byte_fallback(["<|end|>"], "never", ["<b>"]),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in SHAPES}
    ours = {name: _tokenizer(folders[name], SHAPES[name]) for name in SHAPES}
    return {
        name: (ours[name], transformers.PreTrainedTokenizerFast.from_pretrained(folders[name]))
        for name in SHAPES
    }


WORDS = ["martlet", "martlets", " ", "  ", "<b>", "天空", "🐦", "\n", "a", "1234", "<think>", "é"]
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0"), max_size=20),
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_text_becomes_the_ids_that_transformers_gives(shapes, name, text):
    ours, oracle = shapes[name]
    token_ids = ours.encode(text)
    assert token_ids == oracle.encode(text, add_special_tokens=False)
    if "\0" not in text and name != "first":  # where a first space and the one put there are one
        assert ours.decode(token_ids) == text


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_characters_come_whole_whatever_tokens_they_are_cut_into(shapes, name, text):
    ours, _ = shapes[name]
    detokenizer = Detokenizer(ours)
    token_ids = ours.encode(text)
    pieces = [detokenizer.push(token_id) for token_id in token_ids]
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)
    assert "".join(pieces) + detokenizer.flush() == ours.decode(token_ids)


@pytest.mark.parametrize(
    ("config", "post_processor"),
    [
        ({"add_bos_token": True}, "two"),
        ({"add_bos_token": False}, "bos"),
        ({"add_bos_token": False}, None),
        ({}, "bos"),
        ({}, "two"),
        ({}, None),
        ({"add_eos_token": True}, "bos"),
        ({"add_bos_token": None}, "bos"),
    ],
)
def test_texts_begin_as_transformers_begins_them(tmp_path, config, post_processor):
    state = byte_level(SPECIAL)
    ids = {token["content"]: token["id"] for token in state["added_tokens"]}
    starts = {"bos": SPECIAL[:1], "two": SPECIAL[:2]}.get(post_processor, [])
    if starts:
        first = [{"SpecialToken": {"id": name, "type_id": 0}} for name in starts]
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        special = {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in starts}
        template = {
            "type": "TemplateProcessing",
            "single": [*first, sequence],
            "pair": [*first, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special,
        }
        level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
        state["post_processor"] = {
            "type": "Sequence",
            "processors": [level | {"use_regex": True}, template],
        }
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    ours = _tokenizer(tmp_path, state, **names, **config)
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    start = list(ours.special.start)
    assert oracle.encode("hello")[: len(start) + 1] == [*start, ours.encode("hello")[0]]


def test_without_a_post_processor_the_settings_say_whether_a_text_begins_with_bos(tmp_path):
    """As transformers did where its class was Llama's; GGUF files say nothing else either."""
    names = {"bos_token": SPECIAL[0], "add_bos_token": True}
    ours = _tokenizer(tmp_path, byte_level(SPECIAL), **names)
    assert ours.special.start == (ours.special.bos,)


HOSTILE = {
    "no model": {"model": None},
    "a model of another kind": {"model": {"type": "Magic", "vocab": {"a": 0}}},
    "a vocabulary that is a number": {"model": {"type": "BPE", "vocab": 7, "merges": []}},
    "an id that is text": {"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}},
    "an id below zero": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "an id beyond any": {"model": {"type": "BPE", "vocab": {"a": 10**12}, "merges": []}},
    "an id that is true": {"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}},
    "two pieces with an id": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
    "merges of nothing": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}},
    "merges of three": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a a"]}},
    "merges that are numbers": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1]}},
    "added tokens that are numbers": {"added_tokens": [1, 2]},
    "an added token without an id": {"added_tokens": [{"content": "<x>"}]},
    "an added token far away": {
        "added_tokens": [{"id": 9_000_000, "content": "<x>", "special": True}]
    },
    "an added token of the mark": {"added_tokens": [{"id": 423, "content": "\ufdd0423\ufdd1"}]},
    "a bad regex": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(("},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "an unknown step": {"pre_tokenizer": {"type": "Magic"}},
    "an unknown decoder": {"decoder": {"type": "CTC"}},
    "a decoder that is a list": {"decoder": [1]},
    "a normalizer that is text": {"normalizer": "NFC"},
    "a sequence without steps": {"normalizer": {"type": "Sequence"}},
    "a table of characters that is none": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "eA=="}
    },
    "a post-processor of another form": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x"}}],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_tokenizer_json_is_refused_that_has(tmp_path, what):
    state = copy.deepcopy(SHAPES["split"]) | HOSTILE[what]
    start = time.perf_counter()
    with pytest.raises(VocabularyError) as caught:
        _tokenizer(tmp_path, state)
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"model": ' * 100_000,
        "[" * 1_000_000,
        json.dumps(SHAPES["split"])[:-100],
        '{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}",
    ],
    ids=["empty", "list", "open", "deep", "deeper", "cut", "long-number"],
)
def test_what_is_no_json_object_of_a_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelFileError):
        HuggingFaceTokenizer.from_json(tmp_path / "tokenizer.json")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_value_gives_a_tokenizer_or_an_error_and_nothing_else(tmp_path_factory, data):
    state = copy.deepcopy(SHAPES["prefix"])
    odd = st.sampled_from([None, 0, -1, 10**9, "", "x", [], {}, True, 1.5, ["a"], {"type": "BPE"}])
    place = state
    for _ in range(3):
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.just(0))
        if not isinstance(place[key], dict) or data.draw(st.booleans()) or not place[key]:
            break
        place = place[key]
    place[key] = data.draw(odd)
    try:
        tokenizer = _tokenizer(tmp_path_factory.mktemp("damaged"), state)
        tokenizer.encode(CORPUS[0])
    except ModelFileError:
        return


def test_a_pattern_that_tries_without_end_is_stopped_by_the_library(tmp_path):
    """Oniguruma gives up at one place after about half a second; the text is then refused."""
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated"}
    state = copy.deepcopy(SHAPES["split"]) | {"pre_tokenizer": split | {"invert": False}}
    tokenizer = _tokenizer(tmp_path, state)
    start = time.perf_counter()
    with pytest.raises(VocabularyError, match="cannot cut this text into tokens"):
        tokenizer.encode("x" * 5000)
    assert time.perf_counter() - start < 10
