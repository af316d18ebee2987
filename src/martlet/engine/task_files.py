"""What the files of a model say of its texts: the chat template, and which tokens end a text."""

from __future__ import annotations

from typing import Any

from martlet.engine.model_files import ModelFiles
from martlet.tokenizers.chat_template import ChatTemplate
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["chat_template_of", "end_ids_of"]


def chat_template_of(files: ModelFiles, tokenizer: Tokenizer, name: str) -> ChatTemplate | None:
    """The chat template, None where the model came without one.

    ``name`` is what messages call the model.

    Raises:
        ModelFileError: a file is damaged, or the template is too long.
    """
    # Vocabularies of other kinds belong to models from before there were templates.
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    source = files.chat_template()
    if source is None:
        return None
    return ChatTemplate(source, tokenizer, files.special_tokens(), name)


def end_ids_of(files: ModelFiles, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text: those of generation_config.json and config.json, one or many.

    The tokenizer's own is among them. Ids that the vocabulary does not have are passed over.
    """
    named = [*_ids(files.generation), *_ids(files.config)]
    eos = tokenizer.special.eos
    ends = [i for i in named if 0 <= i < tokenizer.vocab_size]
    return frozenset(ends if eos is None else [*ends, eos])


def _ids(config: Any) -> list[int]:
    given = config.get("eos_token_id")
    listed = given if isinstance(given, list) else [given]
    return [token_id for token_id in listed if type(token_id) is int]
