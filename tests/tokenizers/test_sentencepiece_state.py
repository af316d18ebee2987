"""Folders with tokenizer.model alone give the ids of SentencePiece, and of transformers."""

import io
import json
import warnings
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from martlet.errors import ModelFileError, VocabularyError
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.load import load_tokenizer
from martlet.tokenizers.merges import merges_by_score
from tokenizers import AddedToken

from .made_tokenizers import CORPUS

with warnings.catch_warnings():  # SWIG's types lack __module__
    warnings.simplefilter("ignore")
    import sentencepiece

TEXTS = ["Hello world", "天空是蔚蓝色 🐦", " two  spaces ", "a\nb\n\nc\t", "", "x" * 40, "ÅÅ ﬁ ①"]
ADDED = {
    "0": {"content": "<unk>", "special": True},
    "1": {"content": "<s>", "special": True},
    "2": {"content": "</s>", "special": True},
    "400": {"content": "<|im_start|>", "special": True, "normalized": False},
    "401": {"content": "<|im_end|>", "special": True, "normalized": False},
    "402": {"content": "<think>", "special": False, "normalized": False},
}


def _trained(kind="bpe", **options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=kind,
        minloglevel=2,
        **{
            "vocab_size": 400,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "character_coverage": 0.98,
            "user_defined_symbols": ["<用户>", "<AI>"],
            "hard_vocab_limit": False,
            **options,
        },
    )
    return model.getvalue()


def _folder(folder: Path, model: bytes, **config) -> HuggingFaceTokenizer:
    (folder / "tokenizer.model").write_bytes(model)
    settings = {"tokenizer_class": "LlamaTokenizer", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer("huggingface", folder, ["tokenizer.model", "tokenizer_config.json"])


def _sentencepiece(model: bytes):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def llama_model():
    return _trained()


@pytest.fixture(scope="module")
def llama(llama_model, tmp_path_factory):
    return _folder(tmp_path_factory.mktemp("llama"), llama_model)


def test_text_becomes_the_pieces_that_sentencepiece_cuts(llama, llama_model):
    library = _sentencepiece(llama_model)
    for text in [*TEXTS, *CORPUS]:
        assert llama.encode(text) == library.encode(text)
        assert llama.decode(llama.encode(text)) == text


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from(" \n天空a<用户>"), st.characters(codec="utf-8"))))
def test_any_text_does(llama, llama_model, text):
    # Noncharacters and zero, which have a meaning of their own in one or the other.
    text = text.replace("\ufdd0", "").replace("\0", "")
    assert llama.encode(text) == _sentencepiece(llama_model).encode(text)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "unigram"},
        {"add_dummy_prefix": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"user_defined_symbols": []},
    ],
)
def test_other_settings_of_the_model_are_followed(tmp_path, options):
    model = _trained(**options)
    tokenizer, library = _folder(tmp_path, model), _sentencepiece(model)
    for text in [*TEXTS, *CORPUS]:
        assert tokenizer.encode(text) == library.encode(text)


CONFIG = {
    "added_tokens_decoder": ADDED,
    "add_bos_token": True,
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "unk_token": "<unk>",
}
SPELLED = ["<|im_start|>user\nhi<|im_end|>\n", "a<think> b", "<用户>你好<AI>", "a b</s>", "</s>a"]


def test_further_tokens_are_control_tokens_where_the_settings_say_so(llama_model, tmp_path):
    tokenizer = _folder(tmp_path, llama_model, **CONFIG)
    assert tokenizer.vocab_size == 403
    assert (tokenizer.special.start, tokenizer.special.eos) == ((1,), 401)
    for spelled in ("<|im_start|>", "</s>", "<s>"):
        assert tokenizer.decode(tokenizer.encode(spelled)) == spelled
        assert not set(tokenizer.encode(spelled)) & tokenizer.special.control_ids()
    assert tokenizer.encode("<think>") == [402]


def test_a_space_is_put_before_every_stretch_of_text_as_the_first_programs_did(
    llama_model, tmp_path
):
    tokenizer = _folder(tmp_path, llama_model, **CONFIG)
    library = _sentencepiece(llama_model)
    names = tokenizer.template_names(["<think>"])
    user, end = library.encode("user\nhi"), library.encode("\n")
    spelled = tokenizer.encode_spelled(SPELLED[0], names)
    assert spelled == [400, *user, 401, *end]
    spelled = tokenizer.encode_spelled("a<think> b", names)
    assert spelled == [*library.encode("a"), 402, *library.encode(" b")]


def test_with_legacy_off_a_space_is_put_before_the_first_alone_as_in_transformers(
    llama_model, tmp_path
):
    tokenizer = _folder(tmp_path, llama_model, legacy=False, **CONFIG)
    library = _sentencepiece(llama_model)
    scores = {library.id_to_piece(i): library.get_score(i) for i in range(5 + 256, 400)}
    oracle = transformers.LlamaTokenizer(
        vocab={library.id_to_piece(i): i for i in range(400)},
        merges=[tuple(pair) for pair in merges_by_score(scores, tmp_path)],
        legacy=False,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    assert oracle.convert_tokens_to_ids("<|im_end|>") == 401
    words = [AddedToken(word, special=False, normalized=False) for word in ("<think>",)]
    oracle.add_tokens([*words, *(AddedToken(w, normalized=False) for w in ("<用户>", "<AI>"))])
    names = tokenizer.template_names(["<think>"])
    for text in SPELLED:
        expected = oracle.encode(text, add_special_tokens=False)
        assert tokenizer.encode_spelled(text, names) == expected


def test_added_tokens_json_names_tokens_as_well(llama_model, tmp_path):
    (tmp_path / "added_tokens.json").write_text('{"<|end|>": 401, "<|start|>": 400, "bad": "x"}')
    tokenizer = _folder(tmp_path, llama_model, eos_token="<|end|>")
    assert (tokenizer.vocab_size, tokenizer.special.eos) == (402, 401)
    assert tokenizer.encode("<|start|>") == [400]


def test_spare_pieces_take_the_names_that_the_settings_give_them(llama_model, tmp_path):
    added = {"300": {"content": "<|im_end|>", "special": True, "normalized": False}}
    tokenizer = _folder(tmp_path, llama_model, added_tokens_decoder=added)
    names = tokenizer.template_names([])
    assert 300 in tokenizer.special.control_ids()
    assert tokenizer.encode_spelled("<|im_end|>", names) == [300]


def test_texts_begin_with_bos_unless_the_settings_say_otherwise(llama_model, llama, tmp_path):
    assert llama.special.start == (1,)
    assert _folder(tmp_path, llama_model, add_bos_token=False).special.start == ()


def test_damaged_models_are_refused(llama_model, tmp_path):
    for data in (
        b"",
        b"hello",
        llama_model[:-1000],
        llama_model[:1000],
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x02\x0a\x01",
        b"\x0b" * 50,
        llama_model + llama_model,  # every piece twice
        _trained("word", byte_fallback=False, vocab_size=60),
    ):
        with pytest.raises(VocabularyError, match=r"no SentencePiece model|are supported"):
            _folder(tmp_path, data)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_byte_gives_a_tokenizer_or_an_error_and_nothing_else(
    llama_model, tmp_path_factory, data
):
    model = bytearray(llama_model)
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    try:
        tokenizer = _folder(tmp_path_factory.mktemp("damaged"), bytes(model))
    except ModelFileError:
        return
    tokenizer.encode("Hello world")
