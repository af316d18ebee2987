"""The tokenizer of a model folder, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from martlet.errors import ModelFileError, VocabularyError
from martlet.tokenizers.cpm import CPM1Tokenizer, CPM2BilingualTokenizer, CPM2Tokenizer
from martlet.tokenizers.eva import EVATokenizer
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.sentencepiece_state import load_sentencepiece_folder
from martlet.tokenizers.t5 import T5Tokenizer
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["TOKENIZER_KINDS", "check_vocabulary", "load_tokenizer"]

_BY_FILE: dict[str, tuple[str, Callable[[Path], Tokenizer]]] = {
    "cpm1": (".model", CPM1Tokenizer),
    "cpm2": (".txt", CPM2Tokenizer),
    "cpm2-bilingual": (".txt", CPM2BilingualTokenizer),
    "eva": (".txt", EVATokenizer),
}
TOKENIZER_KINDS = (*_BY_FILE, "huggingface")

# Embedding tables are rounded up so that they divide well; a row count that does not divide by
# this, or so many spare rows, means another vocabulary instead.
_PADDING_MULTIPLE = 64
_LARGEST_PADDING = 1024
# Vocabularies of today's models: up to 2,400 spare rows in published ones, a few rows where the
# number does not divide, and at most a few tokens that the model has no rows for.
_LARGEST_SPARE = 4096
_LARGEST_ODD_SPARE = 64
_LARGEST_EXCESS = 64


def load_tokenizer(kind: str, folder: Path, files: Sequence[str]) -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        kind: one of ``TOKENIZER_KINDS``.
        folder: where the files are.
        files: names of the tokenizer's files in the folder.

    Raises:
        ModelFileError: the kind is not known, or a file is missing or cannot be read.
        VocabularyError: a file is damaged, or belongs to another kind of tokenizer.
    """
    for name in files:
        if Path(name).name != name or name in ("", "..", "."):
            raise ModelFileError(
                f"the tokenizer file {name!r} of {folder} is not a plain file name; "
                "do not trust this model"
            )
    if kind == "huggingface":
        return _load_huggingface(folder, files)
    if kind not in _BY_FILE:
        raise ModelFileError(
            f"{folder} asks for a tokenizer of kind {kind!r}; "
            f"known are {', '.join(TOKENIZER_KINDS)}"
        )
    suffix, make = _BY_FILE[kind]
    matching = [name for name in files if name.endswith(suffix)]
    if not matching:
        raise _no_file(kind, folder, files, f"one that ends in {suffix}")
    return make(folder / matching[0])


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Checks that a tokenizer and a model's embedding table belong together.

    Args:
        tokenizer: the tokenizer. One from a hub folder forgets control tokens, up to 64, that the
            table has no rows for.
        vocab_size: rows of the embedding table; a table that is only rounded up to a multiple of
            64, by less than 1024 rows, is accepted. For one from a hub folder that is 4096 rows,
            or 64 where the number does not divide.

    Raises:
        VocabularyError: they do not fit.
    """
    entries, spare = tokenizer.vocab_size, vocab_size - tokenizer.vocab_size
    if spare == 0:
        return
    divides = vocab_size % _PADDING_MULTIPLE == 0
    if isinstance(tokenizer, HuggingFaceTokenizer):
        if 0 > spare >= -_LARGEST_EXCESS and tokenizer.forget_from(vocab_size):
            return
        is_sound = 0 <= spare < (_LARGEST_SPARE if divides else _LARGEST_ODD_SPARE)
    else:
        is_sound = 0 <= spare < _LARGEST_PADDING and divides
    if not is_sound:
        raise VocabularyError(
            f"the vocabulary has {entries} entries but the model {vocab_size}; "
            "they do not belong together: use the vocabulary the model was trained with"
        )


def _load_huggingface(folder: Path, files: Sequence[str]) -> Tokenizer:
    if "tokenizer.json" in files:
        return HuggingFaceTokenizer.from_json(folder / "tokenizer.json")
    if "vocab.json" in files and "merges.txt" in files:
        return HuggingFaceTokenizer.from_gpt2_files(folder / "vocab.json", folder / "merges.txt")
    if "tokenizer.model" in files:
        return load_sentencepiece_folder(folder / "tokenizer.model")
    if model := next((name for name in files if name.endswith(".model")), None):
        return T5Tokenizer(folder / model)
    wanted = "tokenizer.json, vocab.json with merges.txt, tokenizer.model or spiece.model"
    raise _no_file("huggingface", folder, files, wanted)


def _no_file(kind: str, folder: Path, files: Sequence[str], wanted: str) -> ModelFileError:
    return ModelFileError(
        f"a tokenizer of kind {kind!r} needs {wanted}, but {folder} lists "
        f"{', '.join(files) or 'no tokenizer file'}; convert the model again"
    )
