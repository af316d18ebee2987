"""Configurations for checkpoints that carry none: read off the shapes and the published models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.conversion.tokenizer_files import BILINGUAL_VOCAB_SIZE
from martlet.errors import ModelFileError, UsageError

__all__ = [
    "CPM1_SPECIAL_IDS",
    "EVA_SPECIAL_IDS",
    "Gpt2Sizes",
    "T5Sizes",
    "gpt2_config",
    "t5_config",
    "t5_family",
]

# Ids of the published vocabularies: <eod>, <sep>, <pad>, <s>, <s_0>.
CPM1_SPECIAL_IDS: Mapping[str, int | None] = {
    "bos_token_id": None,
    "eos_token_id": 7,
    "pad_token_id": 5,
}
_CPM2_SPECIAL_IDS: Mapping[str, int | None] = {
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 5,
    "decoder_start_token_id": 1,
}
_BILINGUAL_SPECIAL_IDS: Mapping[str, int | None] = {**_CPM2_SPECIAL_IDS, "eos_token_id": 8}
EVA_SPECIAL_IDS: Mapping[str, int | None] = {
    "bos_token_id": 29810,
    "eos_token_id": 4,
    "pad_token_id": 5,
    "decoder_start_token_id": 29810,
}
_EVA_VOCAB_SIZE = 30000
_CPM1_HIDDEN_SIZE = 2560
_CPM1_NUM_HEADS = 32
# EVA 1.0 exists in this width only and does not scale its scores; EVA 2.0 exists in this width
# too, and scales. The narrower ones are all EVA 2.0.
_EVA1_HIDDEN_SIZE = 2048


@dataclass(frozen=True)
class Gpt2Sizes:
    """What the shapes of a decoder-only checkpoint tell."""

    vocab_size: int
    hidden_size: int
    num_positions: int
    num_layers: int
    feed_forward_size: int


@dataclass(frozen=True)
class T5Sizes:
    """What the shapes of an encoder-decoder checkpoint tell."""

    vocab_size: int
    hidden_size: int
    num_encoder_layers: int
    num_decoder_layers: int
    num_heads: int
    num_buckets: int
    attention_size: int
    feed_forward_size: int


def gpt2_config(where: object, sizes: Gpt2Sizes, num_heads: int | None) -> dict[str, Any]:
    """config.json for CPM-1 and its like; the number of heads is in no shape.

    Raises:
        UsageError: the number of heads is neither known nor given, or does not divide the width.
    """
    if num_heads is None and sizes.hidden_size == _CPM1_HIDDEN_SIZE:
        num_heads = _CPM1_NUM_HEADS
    if num_heads is None:
        raise UsageError(
            f"{where}: the number of attention heads is in no tensor of a model of width "
            f"{sizes.hidden_size}; pass --heads N"
        )
    if num_heads < 1 or sizes.hidden_size % num_heads:
        raise UsageError(
            f"{where}: {num_heads} heads do not divide the hidden size {sizes.hidden_size}"
        )
    return {
        "model_type": "gpt2",
        "vocab_size": sizes.vocab_size,
        "n_positions": sizes.num_positions,
        "n_embd": sizes.hidden_size,
        "n_layer": sizes.num_layers,
        "n_head": num_heads,
        "n_inner": sizes.feed_forward_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        **CPM1_SPECIAL_IDS,
    }


def t5_config(
    where: object, sizes: T5Sizes, family: str, attn_scale: bool | None = None
) -> dict[str, Any]:
    """config.json for CPM-2 and EVA.

    ``attn_scale`` None means: as the published model of this family and width has it.

    Raises:
        ModelFileError: the projections do not divide into the heads of the position table.
    """
    if sizes.attention_size % sizes.num_heads:
        raise ModelFileError(
            f"{where}: projections of {sizes.attention_size} rows do not divide into the "
            f"{sizes.num_heads} heads of relative_attention_bias"
        )
    if attn_scale is None:
        attn_scale = family == "eva" and sizes.hidden_size < _EVA1_HIDDEN_SIZE
    if family == "eva":
        special_ids = EVA_SPECIAL_IDS
    elif sizes.vocab_size == BILINGUAL_VOCAB_SIZE:
        special_ids = _BILINGUAL_SPECIAL_IDS
    else:
        special_ids = _CPM2_SPECIAL_IDS
    return {
        "model_type": "t5",
        "vocab_size": sizes.vocab_size,
        "d_model": sizes.hidden_size,
        "d_kv": sizes.attention_size // sizes.num_heads,
        "d_ff": sizes.feed_forward_size,
        "num_layers": sizes.num_encoder_layers,
        "num_decoder_layers": sizes.num_decoder_layers,
        "num_heads": sizes.num_heads,
        "relative_attention_num_buckets": sizes.num_buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "attn_scale": attn_scale,
        **special_ids,
    }


def t5_family(vocab_size: int, *, has_roles: bool) -> str:
    """Which model it is: only EVA has a role table, and only its vocabulary has 30,000 entries."""
    return "eva" if has_roles or vocab_size == _EVA_VOCAB_SIZE else "cpm2"
