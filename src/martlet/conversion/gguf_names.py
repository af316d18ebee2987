"""Where a tensor of ours lies in a GGUF file, and in which order its rows come there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from martlet.conversion.gguf_tensors import GGUFTensors
from martlet.models.architecture import CheckpointTensor

__all__ = ["NOT_WEIGHTS", "GGUFNames", "GGUFPlace"]

NOT_WEIGHTS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
"""Tensors that are settings of the rotation."""

_LAYER = re.compile(r"model\.layers\.(?P<index>[0-9]+)\.(?P<name>.+)\.(?P<kind>weight|bias)")
_FIXED = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# With four norms a block, the second is behind the attention, not before the network.
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OTHER_NAMES = {
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "glm4": {
        "post_self_attn_layernorm": "post_attention_norm",
        "post_mlp_layernorm": "post_ffw_norm",
    },
}
_GEMMAS = ("gemma", "gemma2", "gemma3")
# Rows of a head's queries and keys lie there as the two numbers of each pair that turn together.
_IN_PAIRS = ("llama", "minicpm")


@dataclass(frozen=True)
class GGUFPlace:
    """Where a tensor lies: ``cut`` says which rows of the tensor ``name`` are ours.

    ``heads`` is the number of heads whose rows come in pairs, 0 where the order is ours;
    ``added`` what was added to every number.
    """

    name: str
    cut: CheckpointTensor
    heads: int = 0
    added: float = 0.0

    def row_order(self, num_rows: int) -> Tensor:
        """The row there of each row of ours, (num_rows,) int64.

        Rotation turns number i of a head with number i + half of it; in pairs these are
        neighbours.
        """
        pairs = torch.arange(num_rows).view(self.heads, -1, 2)
        return pairs.transpose(1, 2).reshape(-1)


class GGUFNames:
    """The places of a model's tensors.

    Args:
        architecture: as the file calls it.
        config: our config.json for the model.
        tensors: what the file has; some files keep matrices apart that others keep together.
    """

    def __init__(self, architecture: str, config: Mapping[str, Any], tensors: GGUFTensors) -> None:
        self._architecture = architecture
        self._config = config
        self._tensors = tensors
        self._names = _NAMES | _OTHER_NAMES.get(architecture, {})

    def place(self, name: str) -> GGUFPlace:
        """Where the tensor with this name in our files lies, if the file has it."""
        match = _LAYER.fullmatch(name)
        if match is None:
            found = _FIXED.get(name, name)
            is_norm = name == "model.norm.weight"
            return GGUFPlace(found, CheckpointTensor((found,)), added=self._added(is_norm))
        ours = match["name"]
        prefix, kind = f"blk.{match['index']}.", match["kind"]
        found = f"{prefix}{self._names.get(ours, ours)}.{kind}"
        fused = self._fused(ours)
        cut = CheckpointTensor((found,))
        is_gate = ours in ("mlp.gate_proj", "mlp.up_proj")
        together = f"{prefix}{'ffn_up' if is_gate else 'attn_qkv'}.{kind}"
        is_apart = (
            f"{prefix}ffn_gate.{kind}" in self._tensors if is_gate else found in self._tensors
        )
        if fused is not None and not is_apart and together in self._tensors:
            found, cut = together, CheckpointTensor((together,), None, *fused)
        is_norm = ours.endswith("norm") and kind == "weight"
        return GGUFPlace(found, cut, self._heads(ours), self._added(is_norm))

    def _fused(self, ours: str) -> tuple[int, int] | None:
        """The first row and the rows of a matrix in one that holds several."""
        config = self._config
        inner = config["intermediate_size"]
        queries = config["num_attention_heads"] * config["head_dim"]
        keys = config["num_key_value_heads"] * config["head_dim"]
        rows = {
            "self_attn.q_proj": (0, queries),
            "self_attn.k_proj": (queries, keys),
            "self_attn.v_proj": (queries + keys, keys),
            "mlp.gate_proj": (0, inner),
            "mlp.up_proj": (inner, inner),
        }
        return rows.get(ours)

    def _heads(self, ours: str) -> int:
        if self._architecture not in _IN_PAIRS:
            return 0
        heads = {
            "self_attn.q_proj": "num_attention_heads",
            "self_attn.k_proj": "num_key_value_heads",
        }
        return int(self._config[heads[ours]]) if ours in heads else 0

    def _added(self, is_norm: bool) -> float:
        """Gemma's norms multiply by one more than their weights; the files hold that."""
        return 1.0 if is_norm and self._architecture in _GEMMAS else 0.0
