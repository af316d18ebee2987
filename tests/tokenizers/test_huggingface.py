import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.trainers import BpeTrainer

from martlet.errors import ModelFileError, VocabularyError
from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

TEXT = "天空是蔚蓝色，窗外有 🐦 飞 hello world"


def _byte_level_library() -> Tokenizer:
    """GPT-2's kind: so few merges that Chinese characters and emoji are cut between tokens."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([TEXT] * 5, trainer)
    library.add_special_tokens(["<|endoftext|>", "<|user|>"])
    library.add_tokens([AddedToken("martlet", special=False)])
    return library


def _unigram_library(decoder=None) -> Tokenizer:
    """T5's kind, with bytes to fall back to and control tokens among the pieces."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [("▁", -3.0), ("▁hello", -4.0), ("hello", -5.0), ("▁你", -6.0), ("好", -5.0)]
    pieces += [(letter, -9.0) for letter in "<>/s_extraid0123456789"]
    pieces = list(dict(pieces).items())
    pieces += [("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)]
    library = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoder or decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_1>", "<extra_id_0>"])
    return library


def _saved(library: Tokenizer, folder: Path, **files: dict) -> HuggingFaceTokenizer:
    library.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return HuggingFaceTokenizer.from_json(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    config = {"eos_token": "<|endoftext|>", "bos_token": {"content": "<|endoftext|>"}}
    return _saved(_byte_level_library(), folder, tokenizer_config=config)


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    names = {"eos_token": "</s>", "unk_token": "<unk>"}
    folder = tmp_path_factory.mktemp("t5")
    # Padding 5 is an ordinary byte: a mistake in config.json that must not silence it.
    config = {"pad_token_id": 5, "eos_token_id": 0}
    return _saved(_unigram_library(), folder, special_tokens_map=names, config=config)


# U+FDD0 is the one character that is not encoded as itself.
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0"), max_size=40))
def test_byte_level_agrees_with_the_library(byte_level: HuggingFaceTokenizer, text: str):
    token_ids = byte_level.encode(text)
    assert token_ids == _byte_level_library().encode(text, add_special_tokens=False).ids
    assert byte_level.decode(token_ids) == text


def test_byte_level_cuts_characters_between_tokens(byte_level: HuggingFaceTokenizer):
    token_ids = byte_level.encode("🐧鹅")
    assert len(token_ids) > 2
    first = byte_level.decode_bytes(token_ids[:1])
    assert first in ("🐧".encode()[:n] for n in (1, 2, 3))
    assert byte_level.decode(token_ids[:1]) == "\ufffd"
    assert byte_level.decode(token_ids) == "🐧鹅"


@pytest.mark.parametrize("name", ["byte_level", "unigram"])
@given(data=st.data())
def test_any_ids_stream_to_what_they_decode_to(
    name: str, data: st.DataObject, request: pytest.FixtureRequest
):
    tokenizer = request.getfixturevalue(name)
    ids = st.integers(-1, tokenizer.vocab_size + 3)
    token_ids = data.draw(st.lists(ids, max_size=40))
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(token_ids)


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    return _saved(_unigram_library(decoders.Metaspace()), tmp_path_factory.mktemp("metaspace"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    """A vocabulary without a decoder: tokens are joined by spaces."""
    library = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    config = {"unk_token": "[UNK]"}
    return _saved(library, tmp_path_factory.mktemp("words"), tokenizer_config=config)


@pytest.mark.parametrize("name", ["byte_level", "unigram", "metaspace", "words"])
@given(data=st.data())
def test_the_bytes_of_tokens_are_the_text_but_for_leading_spaces(
    name: str, data: st.DataObject, request: pytest.FixtureRequest
):
    tokenizer = request.getfixturevalue(name)
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    table = tokenizer.token_bytes()
    joined = b"".join(table[i] for i in token_ids)
    assert joined.lstrip(b" ") == tokenizer.decode_bytes(token_ids).lstrip(b" ")
    assert name != "byte_level" or joined == tokenizer.decode_bytes(token_ids)


def test_special_ids_come_from_the_configuration_files(
    byte_level: HuggingFaceTokenizer, unigram: HuggingFaceTokenizer
):
    end, user, added = (byte_level.vocab_size - i for i in (3, 2, 1))
    assert (byte_level.special.eos, byte_level.special.bos) == (end, end)
    assert (byte_level.special.unk, byte_level.special.others) == (None, (user,))
    assert byte_level.decode([end, user, added]) == "martlet"
    assert (unigram.special.eos, unigram.special.unk) == (1, 2)
    assert (unigram.special.pad, unigram.special.others) == (None, (0,))
    last = unigram.vocab_size - 1
    assert unigram.special.sentinels == (last, last - 1)


def test_ids_of_config_json_count_when_no_name_is_given(tmp_path: Path):
    end = _byte_level_library().token_to_id("<|endoftext|>")
    config = {"eos_token_id": [end, 3], "bos_token_id": end, "pad_token_id": None}
    special = _saved(_byte_level_library(), tmp_path, config=config).special
    assert (special.eos, special.bos, special.pad) == (end, end, None)


def test_control_tokens_spelled_in_text_stay_text_in_byte_level(byte_level: HuggingFaceTokenizer):
    text = "a<|endoftext|> <|user|>"
    assert byte_level.decode(byte_level.encode(text)) == text


def test_control_tokens_spelled_in_text_stay_text_in_unigram(unigram: HuggingFaceTokenizer):
    text = "hello</s> <extra_id_0> <pad>"
    # The library alone gives control ids, also when told not to look for added tokens.
    library = _unigram_library()
    library.encode_special_tokens = True
    assert 1 in library.encode(text).ids
    token_ids = unigram.encode(text)
    assert not set(token_ids) & (unigram.special.control_ids() - {unigram.special.unk})
    assert unigram.decode(token_ids) == text


def test_the_mark_of_hidden_names_cannot_be_typed(unigram: HuggingFaceTokenizer):
    token_ids = unigram.encode("\ufdd01\ufdd00")
    assert not set(token_ids) & unigram.special.control_ids()


def test_unigram_falls_back_to_bytes(unigram: HuggingFaceTokenizer):
    token_ids = unigram.encode("hello 🐧")
    assert unigram.decode(token_ids) == "hello 🐧"
    assert unigram.decode_bytes(token_ids[:-1]) == "hello 🐧".encode()[:-1]


@pytest.mark.parametrize("texts", [["hello", "你好"], ["hello hello"], ["你好 hello"]])
def test_metaspace_decodes_as_the_library_does(tmp_path: Path, texts: list[str]):
    library = _unigram_library(decoders.Metaspace())
    tokenizer = _saved(library, tmp_path)
    for text in texts:
        token_ids = tokenizer.encode(text)
        assert tokenizer.decode(token_ids) == library.decode(token_ids) == text


def test_gpt2_vocab_and_merges_files_give_the_same_tokenizer(
    tmp_path: Path, byte_level: HuggingFaceTokenizer
):
    library = _byte_level_library()
    library.model.save(str(tmp_path))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = HuggingFaceTokenizer.from_gpt2_files(
        tmp_path / "vocab.json", tmp_path / "merges.txt"
    )
    assert tokenizer.encode(TEXT) == byte_level.encode(TEXT)
    assert tokenizer.vocab_size == len(vocabulary)
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"
    assert tokenizer.special.others == (vocabulary["<|endoftext|>"],)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path):
    library = _byte_level_library()
    library.enable_truncation(2)
    library.enable_padding(length=100)
    assert _saved(library, tmp_path).decode(_saved(library, tmp_path).encode(TEXT)) == TEXT


def test_an_unknown_piece_named_in_a_plain_vocabulary_is_control(tmp_path: Path):
    library = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.normalizer = normalizers.Lowercase()
    tokenizer = _saved(library, tmp_path, tokenizer_config={"unk_token": "[UNK]"})
    assert tokenizer.encode("A c b") == [1, 0, 2]
    assert tokenizer.decode([1, 0, 2]) == "a b"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", ModelFileError, "is not JSON"),
        ("[]", ModelFileError, "holds a JSON list"),
        ("{}", VocabularyError, "is not a tokenizer.json: KeyError 'model'"),
        ('{"model": {"vocab": {"a": 1e9}}}', VocabularyError, "is no token id"),
        ('{"model": {"vocab": {"a": 99999999999}}}', VocabularyError, "is no token id"),
        ('{"model": {"vocab": [[3, 0.0]]}}', VocabularyError, "is no text"),
        ('{"model": {"vocab": {"a": 0}}}', VocabularyError, "refused by the tokenizers library"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str, error: type, message: str):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(error, match=message) as caught:
        HuggingFaceTokenizer.from_json(path)
    assert "\n" not in str(caught.value)


def test_an_unsupported_decoder_is_named(tmp_path: Path):
    library = _unigram_library(decoders.CTC())
    with pytest.raises(VocabularyError, match='decodes with "CTC"'):
        _saved(library, tmp_path)
