"""The tokenizer inside a GGUF file, as the files that a Hugging Face folder has."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from martlet.conversion.gguf_keys import shortest_decimal
from martlet.conversion.source import TokenizerFiles
from martlet.errors import DiskFullError, ModelFileError
from martlet.tokenizers.gguf_state import tokenizer_config, tokenizer_state
from martlet.tokenizers.gguf_vocabulary import GGUFVocabulary, read_gguf_vocabulary

__all__ = ["gguf_tokenizer"]

_TEMPLATE_KEY = "tokenizer.chat_template"
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_STATE, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


def gguf_tokenizer(
    metadata: Mapping[str, Any], path: Path
) -> tuple[TokenizerFiles | None, dict[str, Any]]:
    """The tokenizer, None where the file has none, and what generation_config.json would say.

    Raises:
        ModelFileError: the template is no text.
        VocabularyError: the vocabulary is malformed, or of a kind that is not supported.
    """
    vocabulary = read_gguf_vocabulary(metadata, path)
    template = metadata.get(_TEMPLATE_KEY)
    if template is not None and not isinstance(template, str):
        raise ModelFileError(f"{path}: {_TEMPLATE_KEY} is {template!r:.40}, expected text")
    generation = _sampling(metadata)
    if vocabulary is None:
        return None, generation
    if vocabulary.end_ids:
        generation["eos_token_id"] = list(vocabulary.end_ids)
    files = _UnpackedFiles(vocabulary, template)
    return TokenizerFiles("huggingface", files), generation


def _sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of sampling that newer files have, under the names of generation_config.json."""
    found = {ours: metadata.get(f"general.sampling.{theirs}") for theirs, ours in _SAMPLING.items()}
    return {
        name: shortest_decimal(value) if isinstance(value, float) else value
        for name, value in found.items()
        if value is not None
    }


class _UnpackedFiles(Mapping[str, Path]):
    """{name: path} of files that are written when the first of them is asked for.

    They lie in a folder of their own among the system's temporary files, which goes with this
    object. Everything that reads tokenizers reads files.
    """

    def __init__(self, vocabulary: GGUFVocabulary, template: str | None) -> None:
        self._vocabulary = vocabulary
        self._template = template
        self._names = (_STATE, _CONFIG) if template is None else (_STATE, _CONFIG, _TEMPLATE)
        self._folder: Path | None = None

    def __getitem__(self, name: str) -> Path:
        if name not in self._names:
            raise KeyError(name)
        if self._folder is None:
            self._folder = self._unpacked()
        return self._folder / name

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _unpacked(self) -> Path:
        vocabulary = self._vocabulary
        contents = {
            _STATE: json.dumps(tokenizer_state(vocabulary), ensure_ascii=False),
            _CONFIG: json.dumps(tokenizer_config(vocabulary), ensure_ascii=False),
        }
        if self._template is not None:
            contents[_TEMPLATE] = self._template
        try:
            folder = Path(tempfile.mkdtemp(prefix="martlet-tokenizer-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            for name, text in contents.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise DiskFullError(
                f"{vocabulary.path}: its tokenizer, {sum(map(len, contents.values())):,} "
                f"characters, cannot be written to a temporary folder: {error.strerror}; "
                f"set TMPDIR to a folder with room"
            ) from error
        return folder
