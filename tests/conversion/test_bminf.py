from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from martlet.checkpoint.store import open_store
from martlet.conversion.convert import convert
from martlet.errors import ModelFileError, UsageError
from martlet.quantization.scheme import QuantizedTensor

Weights = dict[str, Any]
LINEARS = ("Attention.", "DenseReluDense.", "attn.c_", "mlp.c_")


def quantised(weights: dict[str, Tensor]) -> Weights:
    """Random int8 data and fp16 scales in place of the linears, as BMInf holds them."""
    result: Weights = {}
    for name, tensor in weights.items():
        if tensor.ndim == 2 and any(part in name for part in LINEARS) and "bias" not in name:
            data = torch.randint(-127, 128, tensor.shape, dtype=torch.int8)
            result[name] = QuantizedTensor(data, torch.rand(len(data)).half())
        else:
            result[name] = tensor
    return result


def column(weight: QuantizedTensor) -> Tensor:
    return weight.scale[:, None]


def stack(*weights: QuantizedTensor) -> tuple[Tensor, Tensor]:
    return torch.stack([w.data for w in weights]), torch.stack([column(w) for w in weights])


def t5_v0(weights: Weights) -> dict[str, object]:
    tree: dict[str, Any] = {
        "input_embedding": {"weight": weights["shared.weight"]},
        "lm_head": {"weight": weights["lm_head.weight"]},
        "input_mask": {},
    }
    cross = []
    for name in ("encoder", "decoder"):
        table = weights[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        tree[f"{name}_position_bias"] = {"embedding": {"weight": table}}
        final = weights[f"{name}.final_layer_norm.weight"]
        tree[f"{name}_final_layer_nrom"] = {"weight": final}
        layers = tree[name] = {}
        num_layers = sum(f"{name}.block.{i}.layer.0.layer_norm.weight" in weights for i in range(9))
        for i in range(num_layers):
            at = f"{name}.block.{i}.layer."
            ff = f"{at}{1 if name == 'encoder' else 2}."
            own = [weights[f"{at}0.SelfAttention.{p}.weight"] for p in "qkvo"]
            qkv, qkv_scale = stack(*own[:3])
            dense = {}
            for part in ("wi_0", "wi_1", "wo"):
                weight = weights[f"{ff}DenseReluDense.{part}.weight"]
                dense[part] = {"weight": weight.data, "weight_scale": column(weight)}
            layers[str(i)] = {
                "layer_nrom_before_self_attn": {"weight": weights[at + "0.layer_norm.weight"]},
                "layer_nrom_before_ff": {"weight": weights[ff + "layer_norm.weight"]},
                "self_attention": {
                    "w_project_qkv": qkv,
                    "w_project_qkv_scale": qkv_scale,
                    "w_out": own[3].data,
                    "w_out_scale": column(own[3]),
                },
                "dense_gelu_dense": dense,
            }
            if name == "decoder":
                q, k, v, o = (weights[f"{at}1.EncDecAttention.{p}.weight"] for p in "qkvo")
                norm = weights[at + "1.layer_norm.weight"]
                layers[str(i)]["layer_nrom_before_cross_attn"] = {"weight": norm}
                layers[str(i)]["cross_attention"] = {
                    "w_project_q": q.data,
                    "w_project_q_scale": column(q),
                    "w_out": o.data,
                    "w_out_scale": column(o),
                }
                cross.append(stack(k, v))
    tree["encoder_kv"] = {
        "w_project_kv": torch.stack([data for data, _ in cross]),
        "w_project_kv_scale": torch.stack([scale for _, scale in cross]),
    }
    return tree


def linear(weights: Weights, name: str) -> dict[str, Tensor]:
    weight = weights[name + ".weight"]
    parts = {"weight": weight.data, "scale": weight.scale}
    if name + ".bias" in weights:
        parts["bias"] = weights[name + ".bias"]
    return parts


def attention_v1(weights: Weights, at: str) -> dict[str, object]:
    names = {"q": "project_q", "k": "project_k", "v": "project_v", "o": "linear_out"}
    return {theirs: linear(weights, at + ours) for ours, theirs in names.items()}


def t5_v1(weights: Weights) -> dict[str, object]:
    tree: dict[str, Any] = {
        "input_embedding": {"weight": weights["shared.weight"]},
        "output_embedding": {"weight": weights["lm_head.weight"]},
    }
    for name, short in (("encoder", "enc"), ("decoder", "dec")):
        table = weights[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        tree[f"position_bias_{short}"] = {"weight": table.T}
        tree[f"ln_{short}"] = {"weight": weights[f"{name}.final_layer_norm.weight"]}
        layers = tree[f"{short}_layers"] = {}
        num_layers = sum(f"{name}.block.{i}.layer.0.layer_norm.weight" in weights for i in range(9))
        for i in range(num_layers):
            at = f"{name}.block.{i}.layer."
            ff = f"{at}{1 if name == 'encoder' else 2}."
            layers[str(i)] = {
                "ln_attn": {"weight": weights[at + "0.layer_norm.weight"]},
                "self_attn": attention_v1(weights, at + "0.SelfAttention."),
                "ln_ff": {"weight": weights[ff + "layer_norm.weight"]},
                "ff": {
                    "linear_in": linear(weights, ff + "DenseReluDense.wi_0"),
                    "linear_gated": linear(weights, ff + "DenseReluDense.wi_1"),
                    "linear_out": linear(weights, ff + "DenseReluDense.wo"),
                },
            }
            if name == "decoder":
                norm = weights[at + "1.layer_norm.weight"]
                layers[str(i)]["ln_cross_attn"] = {"weight": norm}
                layers[str(i)]["cross_attn"] = attention_v1(weights, at + "1.EncDecAttention.")
    return tree


def both(weights: Weights, name: str) -> dict[str, Tensor]:
    return {part: weights[f"{name}.{part}"] for part in ("weight", "bias")}


def gpt2_v0(weights: Weights) -> dict[str, object]:
    layers: dict[str, Any] = {}
    for i in range(2):
        at = f"transformer.h.{i}."
        qkv = weights[at + "attn.c_attn.weight"]
        out = weights[at + "attn.c_proj.weight"]
        dense = {}
        for ours, theirs in (("c_fc", "wi"), ("c_proj", "wo")):
            weight = weights[f"{at}mlp.{ours}.weight"]
            dense[theirs] = {
                "weight": weight.data,
                "weight_scale": column(weight),
                "weight_bias": weights[f"{at}mlp.{ours}.bias"],
            }
        layers[str(i)] = {
            "layer_nrom_before_self_attn": both(weights, at + "ln_1"),
            "layer_nrom_before_ff": both(weights, at + "ln_2"),
            "self_attention": {
                "w_project_qkv": qkv.data.view(3, -1, qkv.shape[1]),
                "w_project_qkv_scale": qkv.scale.view(3, -1, 1),
                "w_project_bias": weights[at + "attn.c_attn.bias"].view(3, -1),
                "w_out": out.data,
                "w_out_scale": column(out),
                "w_out_bias": weights[at + "attn.c_proj.bias"],
            },
            "dense_gelu_dense": dense,
        }
    return {
        "input_embedding": {"weight": weights["transformer.wte.weight"]},
        "position_embedding": {"weight": weights["transformer.wpe.weight"]},
        "input_mask": {},
        "layers": layers,
        "encoder_final_layer_nrom": both(weights, "transformer.ln_f"),
    }


def gpt2_v1(weights: Weights) -> dict[str, object]:
    layers: dict[str, Any] = {}
    for i in range(2):
        at = f"transformer.h.{i}."
        qkv = weights[at + "attn.c_attn.weight"]
        parts = zip(
            qkv.data.chunk(3),
            qkv.scale.chunk(3),
            weights[at + "attn.c_attn.bias"].chunk(3),
            strict=True,
        )
        attention: dict[str, Any] = {
            f"project_{name}": {"weight": data, "scale": scale, "bias": bias}
            for name, (data, scale, bias) in zip("qkv", parts, strict=True)
        }
        attention["linear_out"] = linear(weights, at + "attn.c_proj")
        layers[str(i)] = {
            "ln_attn": both(weights, at + "ln_1"),
            "self_attn": attention,
            "ln_ff": both(weights, at + "ln_2"),
            "ff": {
                "linear_in": linear(weights, at + "mlp.c_fc"),
                "linear_out": linear(weights, at + "mlp.c_proj"),
            },
        }
    return {
        "token_embedding": {"weight": weights["transformer.wte.weight"]},
        "position_embedding": {"weight": weights["transformer.wpe.weight"]},
        "layernorm": both(weights, "transformer.ln_f"),
        "layers": layers,
    }


def require_same(folder: Path, weights: Weights) -> None:
    store = open_store(folder)
    store.verify()
    seen = set()
    for block in store.manifest.blocks:
        for name, weight in store.block(block.name).items():
            seen.add(block.prefix + name)
            original = weights[block.prefix + name]
            assert type(weight) is type(original), name
            if isinstance(weight, QuantizedTensor):
                assert torch.equal(weight.data, original.data)
                assert torch.equal(weight.scale, original.scale)
                assert weight.scale.dtype == torch.float16
            else:
                assert torch.equal(weight, original), name
                assert weight.dtype == original.dtype
    assert seen == weights.keys()


@pytest.mark.parametrize(
    ("to_tree", "version"), [(t5_v0, "bminf-v0"), (t5_v1, "bminf-v1")], ids=["v0", "v1"]
)
@pytest.mark.parametrize(("vocab_size", "family"), [(48, "cpm2"), (30000, "eva")])
def test_int8_weights_of_cpm2_and_eva_are_taken_over_unchanged(
    maker: Any, tmp_path: Path, to_tree: Any, version: str, vocab_size: int, family: str
) -> None:
    weights = quantised(maker.t5(vocab_size))
    report = convert(maker.bminf(to_tree(weights)), tmp_path / "out")
    assert (report.format_name, report.family, report.quantize) == (version, family, "int8")
    require_same(tmp_path / "out", weights)
    config = open_store(tmp_path / "out").config
    expected = {"num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 4, "d_ff": 24}
    assert expected.items() <= config.items()
    assert config["attn_scale"] is False
    assert config["relative_attention_max_distance"] == 128


@pytest.mark.parametrize(
    ("to_tree", "version"), [(gpt2_v0, "bminf-v0"), (gpt2_v1, "bminf-v1")], ids=["v0", "v1"]
)
def test_int8_weights_of_cpm1_are_taken_over_unchanged(
    maker: Any, tmp_path: Path, to_tree: Any, version: str
) -> None:
    weights = quantised(maker.gpt2())
    source = maker.bminf(to_tree(weights))
    report = convert(source / "checkpoint.pt", tmp_path / "out", num_heads=4)
    assert (report.format_name, report.family) == (version, "cpm1")
    require_same(tmp_path / "out", weights)
    with pytest.raises(UsageError, match="--heads"):
        convert(source, tmp_path / "out2")


def test_embeddings_become_int8_too_if_asked(maker: Any, tmp_path: Path) -> None:
    weights = quantised(maker.t5())
    convert(maker.bminf(t5_v1(weights)), tmp_path / "out", quantize="int8")
    fixed = open_store(tmp_path / "out").block("fixed")
    embedding = fixed["shared.weight"]
    assert isinstance(embedding, QuantizedTensor)
    assert embedding.scale.dtype == torch.float32
    layer = open_store(tmp_path / "out").block("encoder.0")["layer.0.SelfAttention.q.weight"]
    assert isinstance(layer, QuantizedTensor)
    assert layer.scale.dtype == torch.float16


def test_records_of_no_known_model_are_refused(maker: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no known model"):
        convert(maker.bminf({"linear": {"weight": torch.zeros(2, 2).half()}}), tmp_path / "out")


def test_scales_that_do_not_fit_their_rows_are_refused(maker: Any, tmp_path: Path) -> None:
    weights = quantised(maker.t5())
    tree: Any = t5_v1(weights)
    tree["enc_layers"]["1"]["ff"]["linear_in"]["scale"] = torch.ones(23).half()
    with pytest.raises(ModelFileError, match="one float for each row"):
        convert(maker.bminf(tree), tmp_path / "out")
    assert not (tmp_path / "out").exists()
