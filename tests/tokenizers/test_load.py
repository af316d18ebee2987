import json
from pathlib import Path

import pytest

from martlet.errors import ModelFileError, VocabularyError
from martlet.tokenizers.cpm import CPM1Tokenizer, CPM2BilingualTokenizer, CPM2Tokenizer
from martlet.tokenizers.eva import EVATokenizer
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.load import TOKENIZER_KINDS, check_vocabulary, load_tokenizer
from martlet.tokenizers.t5 import T5Tokenizer


def test_every_kind_loads_its_files(tmp_path: Path, zoo: Path, bilingual_vocabulary: Path):
    state = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    loaded = {
        "cpm1": (zoo / "cpm1-mini", ["chinese_vocab.model"], CPM1Tokenizer),
        "cpm2": (zoo / "cpm2-mini", ["vocab.txt"], CPM2Tokenizer),
        "cpm2-bilingual": (bilingual_vocabulary.parent, ["vocab.txt"], CPM2BilingualTokenizer),
        "eva": (zoo / "eva-mini", ["vocab.txt"], EVATokenizer),
        "huggingface": (tmp_path, ["config.json", "tokenizer.json"], HuggingFaceTokenizer),
    }
    assert set(loaded) == set(TOKENIZER_KINDS)
    for kind, (folder, files, expected) in loaded.items():
        assert type(load_tokenizer(kind, folder, files)) is expected


def test_a_sentencepiece_file_is_taken_when_there_is_no_tokenizer_json(zoo: Path):
    tokenizer = load_tokenizer("huggingface", zoo / "cpm1-mini", ["chinese_vocab.model"])
    assert type(tokenizer) is T5Tokenizer


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("cpm3", ["vocab.txt"], "of kind 'cpm3'; known are cpm1, cpm2"),
        ("cpm2", [], "lists no tokenizer file"),
        ("cpm1", ["vocab.txt"], r"needs one that ends in \.model"),
        ("huggingface", ["vocab.json"], r"vocab\.json with merges\.txt"),
        ("cpm2", ["vocab.txt"], "No such file"),
        ("huggingface", ["tokenizer.json"], "No such file"),
        ("huggingface", ["spiece.model"], "No such file"),
        ("cpm2", ["../vocab.txt"], "not a plain file name"),
        ("cpm2", ["/etc/vocab.txt"], "not a plain file name"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, kind: str, files: list[str], message: str
):
    with pytest.raises(ModelFileError, match=message) as caught:
        load_tokenizer(kind, tmp_path, files)
    assert "\n" not in str(caught.value)


def test_the_files_of_another_kind_are_a_vocabulary_error(zoo: Path):
    with pytest.raises(VocabularyError):
        load_tokenizer("eva", zoo / "cpm2-mini", ["vocab.txt"])
    with pytest.raises(VocabularyError):
        load_tokenizer("cpm2-bilingual", zoo / "eva-mini", ["vocab.txt"])


@pytest.mark.parametrize("rows", [26240, 26304, 26624])
def test_an_embedding_table_may_be_padded(cpm2: CPM2Tokenizer, rows: int):
    check_vocabulary(cpm2, rows)


@pytest.mark.parametrize("rows", [0, 26239, 26241, 26250, 30000, 51968])
def test_another_number_of_rows_is_refused(cpm2: CPM2Tokenizer, rows: int):
    with pytest.raises(VocabularyError, match=f"26240 entries but the model {rows}"):
        check_vocabulary(cpm2, rows)
