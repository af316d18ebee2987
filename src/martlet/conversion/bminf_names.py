"""Which record of a BMInf file becomes which of our tensors, for both generations of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LAYOUTS", "Layout", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How one of our tensors is made.

    ``names`` are records, "{}" standing for the number of the layer; several are put one below the
    other. ``pick`` indexes the leading axes of a stacked record, after the number of the layer if
    ``by_layer``. What is left is flattened to rows, or to a vector; ``turned`` transposes it.
    """

    names: tuple[str, ...]
    pick: tuple[int, ...] = ()
    by_layer: bool = False
    vector: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Layout:
    """One generation of the file for one architecture.

    ``layers`` maps a stack ("encoder", "decoder") to the recipes of its layers. The remaining
    fields are the records whose shapes tell the sizes of the model; ``qkv`` and ``feed_forward``
    are int8, and ``embedding`` also tells this layout from the others.
    """

    version: int
    model_type: str
    fixed: Mapping[str, Recipe]
    layers: Mapping[str, Mapping[str, Recipe]]
    embedding: str
    positions: str
    attention_out: str
    feed_forward: str
    norms: tuple[str, ...]

    def recipe(self, name: str) -> tuple[Recipe, int] | None:
        """The recipe for a tensor of ours and the number of its layer (0 outside the layers)."""
        if name in self.fixed:
            return self.fixed[name], 0
        pattern = _GPT2_NAME if self.model_type == "gpt2" else _T5_NAME
        if match := pattern.fullmatch(name):
            stack = match["stack"] if self.model_type == "t5" else "decoder"
            if found := self.layers[stack].get(match["rest"]):
                return found, int(match["layer"])
        return None

    def scale_name(self, name: str) -> str:
        """The record with the scales of an int8 record."""
        return name + "_scale" if self.version == 0 else name.removesuffix("weight") + "scale"


_GPT2_NAME = re.compile(r"transformer\.h\.(?P<layer>\d+)\.(?P<rest>.+)")
_T5_NAME = re.compile(r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.(?P<rest>.+)")
_TABLE = "layer.0.SelfAttention.relative_attention_bias.weight"


def _matrix(*names: str, pick: tuple[int, ...] = (), by_layer: bool = False) -> Recipe:
    return Recipe(names, pick, by_layer)


def _vector(*names: str) -> Recipe:
    return Recipe(names, vector=True)


def _t5_layer_0(stack: str) -> dict[str, Recipe]:
    """Version 0; "nrom" is how the files spell it."""
    at = stack + ".{}."
    ff = 1 if stack == "encoder" else 2
    recipes = {
        "layer.0.layer_norm.weight": _vector(at + "layer_nrom_before_self_attn.weight"),
        **{
            f"layer.0.SelfAttention.{part}.weight": _matrix(
                at + "self_attention.w_project_qkv", pick=(index,)
            )
            for index, part in enumerate("qkv")
        },
        "layer.0.SelfAttention.o.weight": _matrix(at + "self_attention.w_out"),
        f"layer.{ff}.layer_norm.weight": _vector(at + "layer_nrom_before_ff.weight"),
        **{
            f"layer.{ff}.DenseReluDense.{part}.weight": _matrix(
                at + f"dense_gelu_dense.{part}.weight"
            )
            for part in ("wi_0", "wi_1", "wo")
        },
    }
    if stack == "decoder":
        recipes |= {
            "layer.1.layer_norm.weight": _vector(at + "layer_nrom_before_cross_attn.weight"),
            "layer.1.EncDecAttention.q.weight": _matrix(at + "cross_attention.w_project_q"),
            "layer.1.EncDecAttention.k.weight": _matrix(
                "encoder_kv.w_project_kv", pick=(0,), by_layer=True
            ),
            "layer.1.EncDecAttention.v.weight": _matrix(
                "encoder_kv.w_project_kv", pick=(1,), by_layer=True
            ),
            "layer.1.EncDecAttention.o.weight": _matrix(at + "cross_attention.w_out"),
        }
    return recipes


def _t5_layer_1(stack: str) -> dict[str, Recipe]:
    """Version 1; the activation is on linear_in, so that one is wi_0."""
    at = stack[:3] + "_layers.{}."
    ff = 1 if stack == "encoder" else 2
    parts = {"q": "project_q", "k": "project_k", "v": "project_v", "o": "linear_out"}
    feed_forward = {"wi_0": "linear_in", "wi_1": "linear_gated", "wo": "linear_out"}
    recipes = {
        "layer.0.layer_norm.weight": _vector(at + "ln_attn.weight"),
        f"layer.{ff}.layer_norm.weight": _vector(at + "ln_ff.weight"),
    }
    for ours, theirs in parts.items():
        recipes[f"layer.0.SelfAttention.{ours}.weight"] = _matrix(f"{at}self_attn.{theirs}.weight")
    for ours, theirs in feed_forward.items():
        recipes[f"layer.{ff}.DenseReluDense.{ours}.weight"] = _matrix(f"{at}ff.{theirs}.weight")
    if stack == "decoder":
        recipes["layer.1.layer_norm.weight"] = _vector(at + "ln_cross_attn.weight")
        for ours, theirs in parts.items():
            recipes[f"layer.1.EncDecAttention.{ours}.weight"] = _matrix(
                f"{at}cross_attn.{theirs}.weight"
            )
    return recipes


def _gpt2_layer_0() -> dict[str, Recipe]:
    at = "layers.{}."
    ff = at + "dense_gelu_dense."
    return {
        "ln_1.weight": _vector(at + "layer_nrom_before_self_attn.weight"),
        "ln_1.bias": _vector(at + "layer_nrom_before_self_attn.bias"),
        "attn.c_attn.weight": _matrix(at + "self_attention.w_project_qkv"),
        "attn.c_attn.bias": _vector(at + "self_attention.w_project_bias"),
        "attn.c_proj.weight": _matrix(at + "self_attention.w_out"),
        "attn.c_proj.bias": _vector(at + "self_attention.w_out_bias"),
        "ln_2.weight": _vector(at + "layer_nrom_before_ff.weight"),
        "ln_2.bias": _vector(at + "layer_nrom_before_ff.bias"),
        "mlp.c_fc.weight": _matrix(ff + "wi.weight"),
        "mlp.c_fc.bias": _vector(ff + "wi.weight_bias"),
        "mlp.c_proj.weight": _matrix(ff + "wo.weight"),
        "mlp.c_proj.bias": _vector(ff + "wo.weight_bias"),
    }


def _gpt2_layer_1() -> dict[str, Recipe]:
    at = "layers.{}."
    projections = [f"{at}self_attn.project_{part}." for part in "qkv"]
    linears = {
        "attn.c_proj": at + "self_attn.linear_out.",
        "mlp.c_fc": at + "ff.linear_in.",
        "mlp.c_proj": at + "ff.linear_out.",
    }
    recipes = {
        "attn.c_attn.weight": _matrix(*(name + "weight" for name in projections)),
        "attn.c_attn.bias": _vector(*(name + "bias" for name in projections)),
    }
    for ours, theirs in linears.items():
        recipes[ours + ".weight"] = _matrix(theirs + "weight")
        recipes[ours + ".bias"] = _vector(theirs + "bias")
    for ours, theirs in {"ln_1": at + "ln_attn.", "ln_2": at + "ln_ff."}.items():
        recipes[ours + ".weight"] = _vector(theirs + "weight")
        recipes[ours + ".bias"] = _vector(theirs + "bias")
    return recipes


def _gpt2_fixed(embedding: str, norm: str) -> dict[str, Recipe]:
    return {
        "transformer.wte.weight": _matrix(embedding),
        "transformer.wpe.weight": _matrix("position_embedding.weight"),
        "transformer.ln_f.weight": _vector(norm + ".weight"),
        "transformer.ln_f.bias": _vector(norm + ".bias"),
    }


_T5_0 = Layout(
    version=0,
    model_type="t5",
    fixed={
        "shared.weight": _matrix("input_embedding.weight"),
        "lm_head.weight": _matrix("lm_head.weight"),
        f"encoder.block.0.{_TABLE}": _matrix("encoder_position_bias.embedding.weight"),
        f"decoder.block.0.{_TABLE}": _matrix("decoder_position_bias.embedding.weight"),
        "encoder.final_layer_norm.weight": _vector("encoder_final_layer_nrom.weight"),
        "decoder.final_layer_norm.weight": _vector("decoder_final_layer_nrom.weight"),
    },
    layers={stack: _t5_layer_0(stack) for stack in ("encoder", "decoder")},
    embedding="input_embedding.weight",
    positions="encoder_position_bias.embedding.weight",
    attention_out="encoder.0.self_attention.w_out",
    feed_forward="encoder.0.dense_gelu_dense.wi_0.weight",
    norms=tuple(f"{s}.{{}}.layer_nrom_before_ff.weight" for s in ("encoder", "decoder")),
)
_T5_1 = Layout(
    version=1,
    model_type="t5",
    fixed={
        "shared.weight": _matrix("input_embedding.weight"),
        "lm_head.weight": _matrix("output_embedding.weight"),
        # (heads, buckets) in the file
        f"encoder.block.0.{_TABLE}": Recipe(("position_bias_enc.weight",), turned=True),
        f"decoder.block.0.{_TABLE}": Recipe(("position_bias_dec.weight",), turned=True),
        "encoder.final_layer_norm.weight": _vector("ln_enc.weight"),
        "decoder.final_layer_norm.weight": _vector("ln_dec.weight"),
    },
    layers={stack: _t5_layer_1(stack) for stack in ("encoder", "decoder")},
    embedding="input_embedding.weight",
    positions="position_bias_enc.weight",
    attention_out="enc_layers.0.self_attn.linear_out.weight",
    feed_forward="enc_layers.0.ff.linear_in.weight",
    norms=("enc_layers.{}.ln_ff.weight", "dec_layers.{}.ln_ff.weight"),
)
_GPT2_0 = Layout(
    version=0,
    model_type="gpt2",
    fixed=_gpt2_fixed("input_embedding.weight", "encoder_final_layer_nrom"),
    layers={"decoder": _gpt2_layer_0()},
    embedding="input_embedding.weight",
    positions="position_embedding.weight",
    attention_out="layers.0.self_attention.w_out",
    feed_forward="layers.0.dense_gelu_dense.wi.weight",
    norms=("layers.{}.layer_nrom_before_ff.weight",),
)
_GPT2_1 = Layout(
    version=1,
    model_type="gpt2",
    fixed=_gpt2_fixed("token_embedding.weight", "layernorm"),
    layers={"decoder": _gpt2_layer_1()},
    embedding="token_embedding.weight",
    positions="position_embedding.weight",
    attention_out="layers.0.self_attn.linear_out.weight",
    feed_forward="layers.0.ff.linear_in.weight",
    norms=("layers.{}.ln_ff.weight",),
)
LAYOUTS = (_T5_0, _T5_1, _GPT2_0, _GPT2_1)
"""All known layouts; a file has the one whose embedding, positions and layers it holds."""
