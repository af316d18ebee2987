"""Reading fields of a config.json that nobody has checked yet."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from martlet.errors import ModelFileError

__all__ = ["Fields"]

# Above anything that exists, and low enough that a hostile size cannot make us build for hours.
_MAX_SIZE = 1 << 24

# What says how a model was made, trained, stored or is to be sampled, not what it computes.
_HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path architectures attention_dropout
    attn_dropout attn_implementation attn_pdrop auto_map bad_words_ids begin_suppress_tokens
    bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout cls_token_id
    decoder_start_token_id diversity_penalty do_sample dropout dropout_rate dtype early_stopping
    embd_pdrop embed_dropout embedding_dropout encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_factor
    initializer_range is_llama_config label2id length_penalty max_input_tokens max_length
    max_new_tokens max_sequence_length min_length min_p model_type no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type remove_invalid_values
    repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    suppress_tokens task_specific_params tasks temperature tf_legacy_loss tokenizer_class top_k
    top_p torch_dtype torchscript transformers.js_config transformers_version typical_p
    unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()  # noqa: SIM905 - a line a name would be a page
)


@dataclass(frozen=True)
class Fields:
    """The fields of a config.json, read by name and type; a bad one is named in the error.

    What has been asked for is remembered, so that ``refuse_unknown`` can tell what nobody has.
    ``where`` is what errors call the group of fields.
    """

    config: Mapping[str, Any]
    where: str = "config.json"
    _asked: set[str] = field(default_factory=set, compare=False)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        self._asked.add(name)
        return self.config.get(name) is not None

    def get(self, name: str) -> object:
        """The field as it is, None where it is missing."""
        self._asked.add(name)
        return self.config.get(name)

    def size(self, name: str, default: int | None = None, *, limit: int = _MAX_SIZE) -> int:
        """A positive integer of at most ``limit``.

        Raises:
            ModelFileError: the field is missing and has no default, or is no such integer.
        """
        value = self.config[name] if self.has(name) else default
        if value is None:
            raise self.missing(name)
        if type(value) is not int or not 0 < value <= limit:
            raise self.bad(name, value, f"an integer from 1 to {limit:,}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above zero.

        Raises:
            ModelFileError: the field is missing and has no default, or is something else.
        """
        value = self.config[name] if self.has(name) else default
        if value is None:
            raise self.missing(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, value, "a number")
        if not math.isfinite(value) or value <= 0:
            raise self.bad(name, value, "a finite number above 0")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """So many finite numbers above zero.

        Raises:
            ModelFileError: the field is missing or something else.
        """
        value = self.get(name)
        if value is None:
            raise self.missing(name)
        if not isinstance(value, list) or len(value) != count:
            raise self.bad(name, value, f"a list of {count} numbers")
        if any(type(each) not in (int, float) or not 0 < each < math.inf for each in value):
            raise self.bad(name, value, f"a list of {count} finite numbers above 0")
        return tuple(float(each) for each in value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false.

        Raises:
            ModelFileError: the field is something else.
        """
        value = self.config[name] if self.has(name) else default
        if not isinstance(value, bool):
            raise self.bad(name, value, "true or false")
        return value

    def choice(self, name: str, default: str, choices: Collection[str]) -> str:
        """One of a few words.

        Raises:
            ModelFileError: the field is another word or no word.
        """
        value = self.config[name] if self.has(name) else default
        if not isinstance(value, str) or value not in choices:
            raise self.bad(name, value, "one of " + ", ".join(sorted(choices)))
        return value

    def require(self, name: str, only: object) -> None:
        """Refuse a field whose value changes results in a way that is not implemented here.

        Raises:
            ModelFileError: the field is there and not ``only``.
        """
        if self.has(name) and self.config[name] != only:
            raise self.bad(name, self.config[name], f"{only!r} alone")

    def ignore(self, *names: str) -> None:
        """Take these fields for known: a family calls it for what cannot change its results."""
        self._asked.update(names)

    def refuse_unknown(self) -> None:
        """Refuse what nobody has asked for: it may stand for something that changes results.

        Null, false and empty values ask for nothing. Call it when all has been read.

        Raises:
            ModelFileError: there is such a field; the message names it.
        """
        for name, value in self.config.items():
            is_nothing = value is None or value is False or value in ({}, [])
            if not is_nothing and name not in self._asked and name not in _HARMLESS:
                raise ModelFileError(
                    f"{self.where} has the field {str(name)[:60]!r} = {_shown(value)}, which is "
                    "not known for this model_type and may change what it computes; delete the "
                    "field if you know that it does not"
                )

    def missing(self, name: str) -> ModelFileError:
        """The error that a field is not there; to be raised."""
        return ModelFileError(f"{self.where} lacks the field {name!r}; it is not complete")

    def bad(self, name: str, value: object, supported: str) -> ModelFileError:
        """The error that a field has a value other than what is supported; to be raised."""
        return ModelFileError(
            f"{self.where} has {name} = {_shown(value)}; supported is {supported}"
        )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
