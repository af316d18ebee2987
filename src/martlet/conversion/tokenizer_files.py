"""Which vocabulary belongs to a checkpoint, and where its files lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from martlet.conversion.source import TokenizerFiles
from martlet.errors import UsageError, VocabularyError

__all__ = ["BILINGUAL_VOCAB_SIZE", "find_tokenizer"]

BILINGUAL_VOCAB_SIZE = 51968
_MAX_VOCABULARY_BYTES = 256 << 20
_PIECE_MODELS = ("chinese_vocab.model", "spiece.model")
_HUGGING_FACE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
)
_HUGGING_FACE_NEEDED = frozenset({"tokenizer.json", "tokenizer.model", "spiece.model"})
# These cut text as GPT-2 does; others with such files say how in tokenizer.json alone.
_AS_GPT2 = frozenset({"gpt2", "gptj"})


def find_tokenizer(
    family: str, vocab_size: int, beside: Sequence[Path], chosen: Path | None = None
) -> TokenizerFiles | None:
    """The tokenizer files of a model family: the chosen file or folder, else those beside it.

    Raises:
        UsageError: what was chosen holds no vocabulary for this family.
        VocabularyError: the vocabulary has more entries than the model has embeddings.
    """
    if chosen is not None:
        found = _find(family, vocab_size, chosen)
        if found is None:
            raise UsageError(
                f"{chosen}: no vocabulary for {family} there; expected "
                f"{' or '.join(_expected_names(family))}"
            )
        return found
    for place in beside:
        if found := _find(family, vocab_size, place):
            return found
    return None


def _expected_names(family: str) -> tuple[str, ...]:
    if family == "cpm1":
        return _PIECE_MODELS
    if family in ("cpm2", "eva"):
        return ("vocab.txt",)
    if family == "t5":
        return ("tokenizer.json", "spiece.model")
    if family in _AS_GPT2:
        return ("tokenizer.json", "vocab.json with merges.txt")
    return ("tokenizer.json", "tokenizer.model")


def _find(family: str, vocab_size: int, place: Path) -> TokenizerFiles | None:
    if family == "cpm1":
        model = _one_file(place, _PIECE_MODELS)
        return TokenizerFiles("cpm1", {"chinese_vocab.model": model}) if model else None
    if family in ("cpm2", "eva"):
        vocabulary = _one_file(place, ("vocab.txt",))
        if vocabulary is None:
            return None
        _check_size(vocabulary, vocab_size)
        bilingual = family == "cpm2" and vocab_size == BILINGUAL_VOCAB_SIZE
        kind = "cpm2-bilingual" if bilingual else family
        return TokenizerFiles(kind, {"vocab.txt": vocabulary})
    folder = place if place.is_dir() else place.parent
    names = [place.name] if place.is_file() else _HUGGING_FACE
    files = {name: folder / name for name in names if (folder / name).is_file()}
    needed = _HUGGING_FACE_NEEDED | ({"vocab.json"} if family in _AS_GPT2 else set())
    return TokenizerFiles("huggingface", files) if needed & files.keys() else None


def _one_file(place: Path, names: tuple[str, ...]) -> Path | None:
    if place.is_file():
        return place
    return next((place / name for name in names if (place / name).is_file()), None)


def _check_size(vocabulary: Path, vocab_size: int) -> None:
    if vocabulary.stat().st_size > _MAX_VOCABULARY_BYTES:
        raise VocabularyError(f"{vocabulary}: larger than {_MAX_VOCABULARY_BYTES:,} bytes")
    # Empty lines count: the EVA vocabulary has one, and dropping it shifts every later id.
    num_entries = len(vocabulary.read_bytes().removesuffix(b"\n").split(b"\n"))
    if num_entries > vocab_size:
        raise VocabularyError(
            f"{vocabulary}: {num_entries:,} entries, the model has {vocab_size:,} embeddings; "
            f"it is the vocabulary of another model"
        )
