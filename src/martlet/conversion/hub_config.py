"""config.json and generation_config.json of a Hugging Face folder, in our words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from martlet.checkpoint.shards import read_json_object
from martlet.conversion.settings import CPM1_SPECIAL_IDS, EVA_SPECIAL_IDS

__all__ = ["read_config", "read_generation"]

# What says how the file was made or trained, not what it computes.
_NOT_OURS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "gradient_checkpointing",
        "quantization_config",
        "task_specific_params",
        "text_config",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_FLOATS = ("bfloat16", "float16", "float32")
_SAMPLING = frozenset(
    {
        "do_sample",
        "eos_token_id",
        "max_input_tokens",
        "max_new_tokens",
        "min_p",
        "repetition_penalty",
        "suppress_tokens",
        "tasks",
        "temperature",
        "top_k",
        "top_p",
    }
)
# What stands beside the text model's own fields in the config.json of a model that also sees.
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
_CPM1_VOCAB_SIZE = 30000
_CPM2_VOCAB_SIZES = (26240, 51968)


def read_config(folder: Path, raw: dict[str, Any], *, has_head: bool) -> tuple[str, dict[str, Any]]:
    """The family, and our config.json: what is computed, and the type of the floats.

    Of a model of texts and pictures it is the text's. ``has_head`` tells whether the checkpoint has
    an output matrix of its own.
    """
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    if isinstance(nested := raw.get("text_config"), dict):
        shared = {name: raw[name] for name in _SHARED if raw.get(name) is not None}
        raw = {"model_type": raw.get("model_type"), **shared, **nested}
        dtype = raw.get("dtype", raw.get("torch_dtype", dtype))
    config = {key: value for key, value in raw.items() if key not in _NOT_OURS}
    if dtype in _FLOATS:
        config["dtype"] = dtype
    model_type = raw.get("model_type")
    if model_type in ("t5", "mt5", "eva"):
        return _t5(raw, config, has_head=has_head)
    if model_type == "gpt2" and _is_cpm1(folder, raw):
        # The published config names 50256, beyond the vocabulary; the end of a text is <eod>.
        return "cpm1", {**config, **CPM1_SPECIAL_IDS}
    return str(model_type), config


def _is_cpm1(folder: Path, raw: dict[str, Any]) -> bool:
    if raw.get("vocab_size") == _CPM1_VOCAB_SIZE and (folder / "spiece.model").is_file():
        return True
    path = folder / "tokenizer_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    return settings.get("tokenizer_class", raw.get("tokenizer_class")) == "CpmTokenizer"


def _t5(
    raw: dict[str, Any], config: dict[str, Any], *, has_head: bool
) -> tuple[str, dict[str, Any]]:
    kind = raw["model_type"]
    config["model_type"] = "t5"
    if kind == "mt5":
        config = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **config}
    if kind == "eva":
        # Its config class calls the activation "relu" in places; the weights are gated gelu.
        config["feed_forward_proj"] = "gated-gelu"
        config["attn_scale"] = bool(raw.get("attn_scale", False))
        config["tie_word_embeddings"] = False
        config = {**EVA_SPECIAL_IDS, **config}
    # transformers 5 writes tie_word_embeddings true for every T5; a T5 v1.1, whose head counts,
    # shows in scale_decoder_outputs, an mT5 not at all.
    if has_head and (kind == "mt5" or raw.get("scale_decoder_outputs") is False):
        config.update(tie_word_embeddings=False, scale_decoder_outputs=False)
    if kind == "eva":
        return "eva", config
    return ("cpm2" if raw.get("vocab_size") in _CPM2_VOCAB_SIZES else "t5"), config


def read_generation(folder: Path) -> dict[str, Any]:
    """The sampling defaults beside a checkpoint, empty where there are none."""
    path = folder / "generation_config.json"
    raw = read_json_object(path) if path.is_file() else {}
    return {key: value for key, value in raw.items() if key in _SAMPLING and value is not None}
