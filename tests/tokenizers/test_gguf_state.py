import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2 import tokenization_qwen2

import tokenizers
from martlet.errors import VocabularyError
from martlet.tokenizers.gguf_splits import SPLITS
from martlet.tokenizers.gguf_state import tokenizer_config, tokenizer_state
from martlet.tokenizers.gguf_vocabulary import GGUFVocabulary, read_gguf_vocabulary
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.piece_kind import PieceKind

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "then",
    "sleeps",
    "in",
    "the",
    "warm",
    "afternoon",
    "sun",
    "燕子",
    "飞入",
    "寻常",
    "百姓",
    "家",
    "旧时",
    "王谢",
    "堂前",
    "今天",
    "天气",
    "很好",
    "我们",
    "去",
    "公园",
    "aaaa",
    "aaa",
    "baba",
    "abab",
    "été",
    "naïve",
    "don't",
    "I'll",
    "they're",
    "2024",
    "3.14",
    "100000",
    "def",
    "return",
    "self.x",
    "==",
    "None;",
    '{"key":',
    "[1,",
    "2]}",
]
ODD = [
    "🦅",
    "👩‍🚀",
    "é",
    "e\u0301",
    "\t",
    "\n",
    "  ",
    "    ",
    "ñ",
    "한국어",
    "\u2581",
    "<s>",
    "<0x0A>",
    "\x00",
]


def sentences(seed: int, count: int, odd: bool = True) -> list[str]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        pieces = [draw.choice(WORDS) for _ in range(draw.randint(1, 12))]
        if odd:
            pieces += [draw.choice(ODD) for _ in range(draw.randint(0, 4))]
            draw.shuffle(pieces)
        made.append(draw.choice((" ", "", " ", "  ")).join(pieces))
    return made


def opened(tmp_path: Path, metadata: dict[str, Any]) -> HuggingFaceTokenizer:
    vocabulary = read(metadata)
    assert vocabulary is not None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_state(vocabulary)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(vocabulary)))
    return HuggingFaceTokenizer.from_json(tmp_path / "tokenizer.json")


def read(metadata: dict[str, Any]) -> GGUFVocabulary | None:
    return read_gguf_vocabulary(
        {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, Path("m.gguf")
    )


def trained_pieces(
    *, prefix: bool = True, defined: Sequence[str] = ()
) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(1, 2000, odd=False)),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=list(defined),
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def keys_of(
    pieces: sentencepiece.SentencePieceProcessor, defined: Sequence[str] = ()
) -> dict[str, Any]:
    """The keys that llama.cpp's converter makes of a SentencePiece model."""
    ids = range(pieces.get_piece_size())
    kinds, tokens = [], []
    for i in ids:
        token, kind = pieces.id_to_piece(i), PieceKind.NORMAL
        if pieces.is_unknown(i):
            kind = PieceKind.UNKNOWN
        elif pieces.is_control(i):
            kind = PieceKind.CONTROL
        elif pieces.is_byte(i):
            kind = PieceKind.BYTE
        elif token in defined:
            kind, token = PieceKind.USER_DEFINED, token.replace("\u2581", " ")
        kinds.append(int(kind))
        tokens.append(token)
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": [float(pieces.get_score(i)) for i in ids],
        "token_type": kinds,
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_with_scores_cut_text_as_sentencepiece_does(tmp_path: Path, prefix: bool) -> None:
    pieces = trained_pieces(prefix=prefix)
    keys = keys_of(pieces)
    if not prefix:
        keys["add_space_prefix"] = False
    ours = opened(tmp_path, keys)
    texts = [*sentences(2, 600), *("a" * n for n in range(1, 40)), *("ab" * n for n in range(20))]
    draw = random.Random(5)
    texts += ["".join(draw.choices("ab 燕子", k=30)) for _ in range(200)]
    for text in texts:
        if text:
            assert ours.encode(text) == pieces.encode(text), text
            assert ours.decode(ours.encode(text)) == pieces.decode(pieces.encode(text))
    assert ours.special.bos == 1 and ours.special.eos == 2 and ours.special.start == (1,)


def test_tokens_that_were_defined_are_found_whole_and_shown(tmp_path: Path) -> None:
    defined = ("\u2581\u2581\u2581", "<mark>")
    pieces = trained_pieces(prefix=False, defined=defined)
    ours = opened(tmp_path, {**keys_of(pieces, defined), "add_space_prefix": False})
    for text in ("a   b", "fox<mark>dog", "   ", "<mark>   <mark>", *sentences(3, 200)):
        # A word start that is typed is a space to SentencePiece before it looks for tokens.
        text = text.replace("\u2581", "")
        assert ours.encode(text) == pieces.encode(text), text
    assert ours.decode(ours.encode("a<mark>   b")) == "a<mark>   b"


def byte_level(name: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A trained tokenizer with the cut of that name, and its keys in a GGUF file."""
    steps = SPLITS[name].steps(add_prefix_space=False)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=SPLITS[name].ignores_merges))
    if SPLITS[name].is_composed:
        theirs.normalizer = tokenizers.normalizers.NFC()
    cuts: list[Any] = [
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in SPLITS[name].patterns
    ]
    cuts.append(tokenizers.pre_tokenizers.ByteLevel(False, use_regex=SPLITS[name].has_gpt2))
    assert len(cuts) == len(steps)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(cuts)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(sentences(1, 1000), trainer)
    state = json.loads(theirs.to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    keys = {
        "model": "gpt2",
        "pre": name,
        "tokens": [*tokens, "<tool>"],
        "token_type": [
            *(
                int(PieceKind.CONTROL if token == "<|end|>" else PieceKind.NORMAL)
                for token in tokens
            ),
            int(PieceKind.USER_DEFINED),
        ],
        "merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "eos_token_id": 0,
    }
    theirs.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    return theirs, keys


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "smollm"])
def test_bytes_and_merges_cut_text_as_the_tokenizers_library_does(
    tmp_path: Path, name: str
) -> None:
    theirs, keys = byte_level(name)
    ours = opened(tmp_path, keys)
    for text in [*sentences(2, 300), "a<tool>b"]:
        assert ours.encode(text) == theirs.encode(text).ids, text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text).ids)
    assert ours.encode("<|end|>") != [0]
    assert ours.special.eos == 0 and ours.special.start == ()


def test_the_cuts_are_those_of_the_models_that_they_are_named_after() -> None:
    assert SPLITS["qwen2"].patterns == (tokenization_qwen2.PRETOKENIZE_REGEX,)
    assert SPLITS["llama-bpe"].patterns == (TikTokenConverter().pattern,)


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_every_cut_is_understood_by_the_library_and_loses_nothing(name: str) -> None:
    whole = tokenizers.pre_tokenizers.Sequence(
        [
            *(
                tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
                for pattern in SPLITS[name].patterns
            )
        ]
    )
    for text in sentences(4, 50):
        assert "".join(piece for piece, _ in whole.pre_tokenize_str(text)) == text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("tekken", "HelloWorld 123", ["Hello", "World", " ", "1", "2", "3"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        (
            "llama-bpe",
            "HelloWorld's 1234\n\n x",
            ["HelloWorld", "'s", " ", "123", "4", "\n\n", " x"],
        ),
        ("qwen2", "I'LL 12", ["I", "'LL", " ", "1", "2"]),
        ("deepseek-v3", "燕子12345 a", ["燕子", "123", "45", " a"]),
    ],
)
def test_words_are_cut_where_the_models_cut_them(name: str, text: str, expected: list[str]) -> None:
    cuts = [
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in SPLITS[name].patterns
    ]
    found = tokenizers.pre_tokenizers.Sequence(cuts).pre_tokenize_str(text)
    assert [piece for piece, _ in found] == expected


GOOD = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["a", "b", "ab", "<|im_end|>", "<e>"],
    "token_type": [1, 1, 1, 3, 3],
    "merges": ["a b"],
    "eos_token_id": 4,
}


def test_every_token_that_ends_a_turn_is_known() -> None:
    vocabulary = read({**GOOD, "bos_token_id": 4})
    assert vocabulary is not None
    assert vocabulary.end_ids == (3, 4)
    assert tokenizer_config(vocabulary) == {
        "eos_token": "<e>",
        "bos_token": "<e>",
        "add_bos_token": False,
        "add_eos_token": False,
    }
    typed = read({**GOOD, "token_type": [1, 1, 1, 1, 3]})
    assert typed is not None and typed.end_ids == (4,)
    told = read({**GOOD, "bos_token_id": 4, "add_bos_token": True})
    assert told is not None and tokenizer_config(told)["add_bos_token"] is True


def test_a_file_without_a_vocabulary_has_none() -> None:
    assert read({}) is None
    assert read({"model": "no_vocab"}) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "bert"}, "model is 'bert', supported are gpt2 and llama"),
        ({"pre": "xyz"}, "pre is 'xyz', which is not known"),
        ({"pre": None}, "pre is None"),
        ({"tokens": []}, "0 tokens"),
        ({"tokens": "a"}, "tokens is no list of str"),
        ({"tokens": [1, 2, 3, 4, 5]}, "tokens is no list of str"),
        ({"tokens": ["a", "a", "ab", "x", "y"]}, "the token 'a' occurs twice"),
        ({"token_type": [1]}, "1 values of tokenizer.ggml.token_type for 5 tokens"),
        ({"token_type": [True] * 5}, "token_type is no list of int"),
        ({"scores": [1.0]}, "1 values of tokenizer.ggml.scores"),
        ({"merges": ["a"]}, "the merge 'a' is not of two tokens"),
        ({"merges": ["a c"]}, "the merge 'a c' is not of two tokens"),
        ({"eos_token_id": 5}, "eos_token_id is 5, there are 5 tokens"),
        ({"eos_token_id": "4"}, "eos_token_id is '4'"),
        ({"add_bos_token": 1}, "add_bos_token is 1, expected a bool"),
        ({"model": "llama"}, "there are no scores"),
        ({"model": "llama", "tokens": ["x" * 300, "b", "c", "d", "e"]}, "256 for one"),
    ],
)
def test_what_is_wrong_with_a_vocabulary_is_told(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(VocabularyError, match=reason) as caught:
        vocabulary = read({**GOOD, **change})
        assert vocabulary is not None
        tokenizer_state(vocabulary)
        tokenizer_config(vocabulary)
    assert "m.gguf" in str(caught.value)
