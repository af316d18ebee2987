"""The original releases of CPM-1, CPM-2 and EVA: shards of Megatron or DeepSpeed.

    FOLDER/latest_checkpointed_iteration.txt       an integer
    FOLDER/ITERATION/mp_rank_00_model_states.pt    DeepSpeed: weights under "module"
    FOLDER/iter_ITERATION/mp_rank_00/model_optim_rng.pt    Megatron: weights under "model"

The inner folder, or one merged file, is accepted as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet.checkpoint.shards import read_json_object
from martlet.conversion.settings import Gpt2Sizes, T5Sizes, gpt2_config, t5_config, t5_family
from martlet.conversion.shards import Piece, Shards
from martlet.conversion.source import StoredForm, TokenizerFiles
from martlet.conversion.table import TensorTable
from martlet.conversion.tokenizer_files import find_tokenizer
from martlet.conversion.torch_files import section_table
from martlet.errors import ModelFileError
from martlet.quantization.scheme import StoredWeight

__all__ = ["MegatronSource", "find_shards"]

_LATEST = "latest_checkpointed_iteration.txt"
_MAX_RANKS = 1024

# Ours on the left, theirs on the right; {} is the number of the layer.
_GPT2_FIXED = {
    "transformer.wte.weight": Piece("word_embeddings.weight", 0),
    "transformer.wpe.weight": Piece("position_embeddings.weight"),
    "transformer.ln_f.weight": Piece("transformer.final_layernorm.weight"),
    "transformer.ln_f.bias": Piece("transformer.final_layernorm.bias"),
}
_GPT2_LAYER = {
    "ln_1.weight": Piece("input_layernorm.weight"),
    "ln_1.bias": Piece("input_layernorm.bias"),
    "attn.c_attn.weight": Piece("attention.query_key_value.weight", 0, parts=3),
    "attn.c_attn.bias": Piece("attention.query_key_value.bias", 0, parts=3),
    "attn.c_proj.weight": Piece("attention.dense.weight", 1),
    "attn.c_proj.bias": Piece("attention.dense.bias"),
    "ln_2.weight": Piece("post_attention_layernorm.weight"),
    "ln_2.bias": Piece("post_attention_layernorm.bias"),
    "mlp.c_fc.weight": Piece("mlp.dense_h_to_4h.weight", 0),
    "mlp.c_fc.bias": Piece("mlp.dense_h_to_4h.bias", 0),
    "mlp.c_proj.weight": Piece("mlp.dense_4h_to_h.weight", 1),
    "mlp.c_proj.bias": Piece("mlp.dense_4h_to_h.bias"),
}
_BIAS = "self_attn.self_attn.relative_attention_bias.weight"
_T5_FIXED = {
    "shared.weight": Piece("word_embeds.weight", 0),
    "lm_head.weight": Piece("lm_head.weight", 0),
    "encoder.final_layer_norm.weight": Piece("encoder.final_layernorm.weight"),
    "decoder.final_layer_norm.weight": Piece("decoder.final_layernorm.weight"),
}
_ATTENTION = {
    "layer.0.layer_norm.weight": Piece("self_attn.layer_norm.weight"),
    "layer.0.SelfAttention.q.weight": Piece("self_attn.self_attn.project.weight", 0, 3, 0),
    "layer.0.SelfAttention.k.weight": Piece("self_attn.self_attn.project.weight", 0, 3, 1),
    "layer.0.SelfAttention.v.weight": Piece("self_attn.self_attn.project.weight", 0, 3, 2),
    "layer.0.SelfAttention.o.weight": Piece("self_attn.self_attn.dense.weight", 1),
    "layer.0.SelfAttention.relative_attention_bias.weight": Piece(_BIAS, 1),
}
_CROSS = {
    "layer.1.layer_norm.weight": Piece("cross_attn.layer_norm.weight"),
    "layer.1.EncDecAttention.q.weight": Piece("cross_attn.cross_attn.project_q.weight", 0),
    "layer.1.EncDecAttention.k.weight": Piece("cross_attn.cross_attn.project_kv.weight", 0, 2, 0),
    "layer.1.EncDecAttention.v.weight": Piece("cross_attn.cross_attn.project_kv.weight", 0, 2, 1),
    "layer.1.EncDecAttention.o.weight": Piece("cross_attn.cross_attn.dense.weight", 1),
}
_T5_LAYER = re.compile(r"(encoder|decoder)\.block\.(\d+)\.(.+)")
_GPT2_LAYER_NAME = re.compile(r"transformer\.h\.(\d+)\.(.+)")


def _feed_forward(layer: int) -> dict[str, Piece]:
    return {
        f"layer.{layer}.layer_norm.weight": Piece("ff.layer_norm.weight"),
        f"layer.{layer}.DenseReluDense.wi_0.weight": Piece("ff.dense_relu_dense.wi_0.weight", 0),
        f"layer.{layer}.DenseReluDense.wi_1.weight": Piece("ff.dense_relu_dense.wi_1.weight", 0),
        f"layer.{layer}.DenseReluDense.wo.weight": Piece("ff.dense_relu_dense.wo.weight", 1),
    }


_T5_LAYERS = {
    "encoder": {**_ATTENTION, **_feed_forward(1)},
    "decoder": {**_ATTENTION, **_CROSS, **_feed_forward(2)},
}


def find_shards(path: Path) -> list[Path]:
    """The shard files of a checkpoint in order of their rank; empty if none is there.

    Raises:
        ModelFileError: a rank is missing, or the iteration file leads nowhere.
    """
    folder = path
    if (path / _LATEST).is_file():
        folder = _latest(path)
    ranks: dict[int, Path] = {}
    for file in folder.glob("mp_rank_*_model_states.pt"):
        if match := re.fullmatch(r"mp_rank_(\d{1,5})_model_states\.pt", file.name):
            ranks[int(match[1])] = file
    for file in folder.glob("mp_rank_*/model_optim_rng.pt") if not ranks else ():
        if match := re.fullmatch(r"mp_rank_(\d{1,5})", file.parent.name):
            ranks[int(match[1])] = file
    if len(ranks) > _MAX_RANKS or sorted(ranks) != list(range(len(ranks))):
        raise ModelFileError(
            f"{folder}: has the shards of ranks {sorted(ranks)[:8]}, expected 0, 1, 2, ... "
            f"without a gap; download the missing ones"
        )
    if folder != path and not ranks:
        raise ModelFileError(f"{folder}: {path / _LATEST} names it, but it holds no shards")
    return [ranks[rank] for rank in sorted(ranks)]


def _latest(folder: Path) -> Path:
    text = (folder / _LATEST).read_bytes()[:100].decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise ModelFileError(f"{folder / _LATEST}: holds {text!r:.40}, expected a number")
    names = (text, f"iter_{int(text):07d}")
    return next((folder / name for name in names if (folder / name).is_dir()), folder / text)


class MegatronSource:
    """Shards of CPM-1 (decoder only), CPM-2 or EVA (encoder-decoder).

    Raises:
        ModelFileError: the tensors are those of no known model, or do not fit together.
        UsageError: the number of heads must be given.
    """

    format_name = "megatron"

    def __init__(
        self,
        path: Path,
        files: list[Path],
        tokenizer: Path | None = None,
        num_heads: int | None = None,
    ) -> None:
        tables: list[TensorTable] = []
        for file in files:
            table, values = section_table(file)
            _check_world_size(file, values, len(files))
            tables.append(table)
        shards = Shards(path, tables)
        self._shards = shards
        self.generation: dict[str, Any] = {}
        self.compression: dict[str, Any] = {}
        if "word_embeddings.weight" in shards:
            self.family = "cpm1"
            self.config = gpt2_config(path, _gpt2_sizes(shards), num_heads)
        elif "word_embeds.weight" in shards:
            sizes = _t5_sizes(shards)
            has_roles = "role_embeds.weight" in shards
            self.family = t5_family(sizes.vocab_size, has_roles=has_roles)
            self.config = t5_config(path, sizes, self.family, _attn_scale_beside(path))
            for copy in ("encoder.word_embeds.weight", "decoder.word_embeds.weight"):
                if copy in shards:
                    shards.require_equal("word_embeds.weight", copy)
        else:
            raise ModelFileError(
                f"{path}: neither word_embeddings.weight (CPM-1) nor word_embeds.weight (CPM-2, "
                f"EVA) is in it; the layout of this checkpoint is not known"
            )
        self.tokenizer: TokenizerFiles | None = find_tokenizer(
            self.family, self.config["vocab_size"], _places(path, files), tokenizer
        )

    def stored_as(self, name: str) -> StoredForm:
        """The float type of a tensor."""
        return StoredForm(self._shards.dtype(self._piece(name).name))

    def tensor(self, name: str) -> StoredWeight:
        """The joined tensor of that name."""
        self._shards.forget()
        return self._shards.load(self._piece(name))

    def _piece(self, name: str) -> Piece:
        piece: Piece | None = None
        prefix = ""
        if name in (fixed := _GPT2_FIXED if self.family == "cpm1" else _T5_FIXED):
            piece = fixed[name]
        elif match := _GPT2_LAYER_NAME.fullmatch(name):
            piece, prefix = _GPT2_LAYER.get(match[2]), f"transformer.layers.{match[1]}."
        elif match := _T5_LAYER.fullmatch(name):
            piece, prefix = _T5_LAYERS[match[1]].get(match[3]), f"{match[1]}.blocks.{match[2]}."
        if piece is None:
            raise ModelFileError(f"{self._shards.path}: has nothing that could be {name}")
        return Piece(prefix + piece.name, piece.axis, piece.parts, piece.pick)


def _check_world_size(file: Path, values: Mapping[str, Any], num_files: int) -> None:
    world_size = values.get("mp_world_size")
    if isinstance(world_size, int) and world_size != num_files:
        raise ModelFileError(
            f"{file}: is one of {world_size} shards, {num_files} are there; download the others"
        )


def _gpt2_sizes(shards: Shards) -> Gpt2Sizes:
    num_layers = shards.tables[0].count("transformer.layers.{}.input_layernorm.weight")
    _require_layers(shards, num_layers)
    return Gpt2Sizes(
        vocab_size=shards.size("word_embeddings.weight", 0, split=True),
        hidden_size=shards.size("word_embeddings.weight", 1),
        num_positions=shards.size("position_embeddings.weight", 0),
        num_layers=num_layers,
        feed_forward_size=shards.size(
            "transformer.layers.0.mlp.dense_h_to_4h.weight", 0, split=True
        ),
    )


def _t5_sizes(shards: Shards) -> T5Sizes:
    layers = [
        shards.tables[0].count(stack + ".blocks.{}.self_attn.layer_norm.weight")
        for stack in ("encoder", "decoder")
    ]
    _require_layers(shards, min(layers))
    block = "encoder.blocks.0."
    return T5Sizes(
        vocab_size=shards.size("word_embeds.weight", 0, split=True),
        hidden_size=shards.size("word_embeds.weight", 1),
        num_encoder_layers=layers[0],
        num_decoder_layers=layers[1],
        num_heads=shards.size(block + _BIAS, 1, split=True),
        num_buckets=shards.size(block + _BIAS, 0),
        attention_size=shards.size(block + "self_attn.self_attn.dense.weight", 1, split=True),
        feed_forward_size=shards.size(block + "ff.dense_relu_dense.wi_0.weight", 0, split=True),
    )


def _require_layers(shards: Shards, num_layers: int) -> None:
    if num_layers == 0:
        raise ModelFileError(f"{shards.path}: has embeddings but no layers")


def _places(path: Path, files: list[Path]) -> list[Path]:
    """Where a vocabulary may lie: beside the shards, or up to two folders above them."""
    inner = files[0].parent
    places = [inner, inner.parent] if path.is_file() else [path, inner, inner.parent, path.parent]
    return list(dict.fromkeys(places))


def _attn_scale_beside(path: Path) -> bool | None:
    """What a model configuration beside the checkpoint says, as the EVA repository has them."""
    folder = path if path.is_dir() else path.parent
    for file in sorted(folder.glob("*config.json")):
        scale = read_json_object(file).get("attn_scale")
        if isinstance(scale, bool):
            return scale
    return None
