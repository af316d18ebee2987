"""Checkpoints in the layouts of Hugging Face transformers: GPT-2, Llama, T5 v1.1 and kin, EVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from martlet.checkpoint.shards import read_json_object, read_shard_index
from martlet.conversion.packed_linears import PackedLinears
from martlet.conversion.packed_settings import read_packed_settings
from martlet.conversion.settings import CPM1_SPECIAL_IDS, EVA_SPECIAL_IDS
from martlet.conversion.source import StoredForm, TokenizerFiles
from martlet.conversion.table import StoredTensor, TensorTable, safetensors_table
from martlet.conversion.tokenizer_files import find_tokenizer
from martlet.conversion.torch_files import torch_table
from martlet.errors import ModelFileError
from martlet.quantization.scheme import StoredWeight

__all__ = ["HuggingFaceSource", "find_weights"]

# GPT-2 keeps these as Conv1D, (in_features, out_features); ours are all (out, in).
_CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
_MODEL_TYPES = {"gpt2": "gpt2", "llama": "llama", "t5": "t5", "mt5": "t5", "eva": "t5"}
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
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
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
_CPM1_VOCAB_SIZE = 30000
_CPM2_VOCAB_SIZES = (26240, 51968)


def find_weights(folder: Path) -> Path | None:
    """The weight file or shard index of a Hugging Face folder, safetensors first."""
    names = (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


class HuggingFaceSource:
    """A folder with config.json and weights: floats, or the packed integers of GPTQ or AWQ.

    Raises:
        ModelFileError: an architecture that is not supported, or files that are not sound.
    """

    format_name = "huggingface"

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        raw = read_json_object(folder / "config.json")
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in _MODEL_TYPES:
            raise ModelFileError(
                f"{folder}: model_type {model_type!r:.40} is not supported, "
                f"only {', '.join(_MODEL_TYPES)}"
            )
        settings = read_packed_settings(folder, raw)
        self.family = _family(folder, raw)
        self.config = _config(raw, self.family)
        self.generation = _generation(folder)
        self.compression: dict[str, Any] = {}
        self.tokenizer: TokenizerFiles | None = find_tokenizer(
            self.family, _vocab_size(folder, raw), [folder], tokenizer
        )
        self._table = _read_table(folder)
        self._packed = None if settings is None else PackedLinears(self._table, settings)
        if settings is not None:
            self.format_name = f"huggingface-{settings.method}"
            self.compression = {"method": settings.method, "imported": True}
        if _has_own_head(raw) and "lm_head.weight" in self._table:
            self.config.update(tie_word_embeddings=False, scale_decoder_outputs=False)

    def stored_as(self, name: str) -> StoredForm:
        """The float type of a tensor, or the format of its integers."""
        if self._packed is not None and self._packed_stem(name) is not None:
            return StoredForm(self._packed.format)
        return StoredForm(self._find(name).dtype)

    def tensor(self, name: str) -> StoredWeight:
        """The tensor of that name, turned round where the file keeps (in, out)."""
        self._table.forget()
        if self._packed is not None and (stem := self._packed_stem(name)) is not None:
            if self.config["model_type"] != "gpt2":
                self._packed.require_no_bias(stem)
            return self._packed.load(stem)
        tensor = self._find(name).load()
        if self.config["model_type"] == "gpt2" and name.endswith(_CONV1D):
            return tensor.T
        return tensor

    def _packed_stem(self, name: str) -> str | None:
        """What stands before "qweight" where that tensor is packed; None where it is floats."""
        if self._packed is None or not name.endswith(".weight"):
            return None
        stems = (known.removesuffix("weight") for known in self._names(name))
        return next((stem for stem in stems if self._packed.has(stem)), None)

    def _find(self, name: str) -> StoredTensor:
        return self._table.find(*self._names(name))

    def _names(self, name: str) -> tuple[str, ...]:
        """The names that a tensor of ours may have in the file, the likeliest first."""
        if self.config["model_type"] == "gpt2":
            tied = ("transformer.wte.weight", "wte.weight") if name == "lm_head.weight" else ()
            return (name, name.removeprefix("transformer."), *tied)
        if self.config["model_type"] == "llama":
            return (name, name.removeprefix("model."))
        if name == "shared.weight":
            return (name, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        if name == "lm_head.weight" and self.config.get("tie_word_embeddings"):
            return (name, "shared.weight")
        return (name,)


def _read_table(folder: Path) -> TensorTable:
    path = find_weights(folder)
    if path is None:
        raise ModelFileError(f"{folder}: no model.safetensors and no pytorch_model.bin")
    if path.name.endswith(".index.json"):
        files = list(dict.fromkeys(read_shard_index(path).values()))
    else:
        files = [path]
    if ".safetensors" in path.name:
        return safetensors_table(folder, files)
    return torch_table(folder, files)


def _vocab_size(folder: Path, raw: dict[str, Any]) -> int:
    vocab_size = raw.get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise ModelFileError(f"{folder / 'config.json'}: vocab_size is {vocab_size!r:.40}")
    return vocab_size


def _family(folder: Path, raw: dict[str, Any]) -> str:
    vocab_size = _vocab_size(folder, raw)
    if raw["model_type"] in ("eva", "llama"):
        return str(raw["model_type"])
    if raw["model_type"] == "gpt2":
        if vocab_size == _CPM1_VOCAB_SIZE and (folder / "spiece.model").is_file():
            return "cpm1"
        return "cpm1" if _tokenizer_class(folder, raw) == "CpmTokenizer" else "gpt2"
    return "cpm2" if vocab_size in _CPM2_VOCAB_SIZES else "t5"


def _tokenizer_class(folder: Path, raw: dict[str, Any]) -> object:
    path = folder / "tokenizer_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    return settings.get("tokenizer_class", raw.get("tokenizer_class"))


def _config(raw: dict[str, Any], family: str) -> dict[str, Any]:
    config = {key: value for key, value in raw.items() if key not in _NOT_OURS}
    config["model_type"] = _MODEL_TYPES[raw["model_type"]]
    if family == "cpm1":
        # The published config names 50256, beyond the vocabulary; the end of a text is <eod>.
        config.update(CPM1_SPECIAL_IDS)
    if raw["model_type"] == "mt5":
        config = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **config}
    if raw["model_type"] == "eva":
        # Its config class calls the activation "relu" in places; the weights are gated gelu.
        config["feed_forward_proj"] = "gated-gelu"
        config["attn_scale"] = bool(raw.get("attn_scale", False))
        config["tie_word_embeddings"] = False
        config = {**EVA_SPECIAL_IDS, **config}
    return config


def _has_own_head(raw: dict[str, Any]) -> bool:
    """Whether a head in the file counts, though config.json may say that it is tied.

    transformers 5 writes ``tie_word_embeddings`` true for every T5; a T5 v1.1 shows in
    ``scale_decoder_outputs``, an mT5 not at all.
    """
    return raw["model_type"] == "mt5" or raw.get("scale_decoder_outputs") is False


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    raw = read_json_object(path) if path.is_file() else {}
    return {key: value for key, value in raw.items() if key in _SAMPLING and value is not None}
