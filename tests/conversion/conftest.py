"""Tiny checkpoints in exactly the published layouts, made from weights under our own names."""

import argparse
import json
import random
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

Weights = dict[str, Tensor]

T5 = {"V": 48, "d": 8, "heads": 4, "a": 16, "ff": 24, "encoder": 2, "decoder": 3}
GPT2 = {"V": 48, "d": 16, "positions": 12, "ff": 32, "layers": 2}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape).half()


class Maker:
    """Makes weights and writes them as others do; all files go below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # Weights under our names

    def t5(self, vocab_size: int = T5["V"]) -> Weights:
        d, a, ff = T5["d"], T5["a"], T5["ff"]
        weights = {"shared.weight": draw(vocab_size, d), "lm_head.weight": draw(vocab_size, d)}
        for stack in ("encoder", "decoder"):
            weights[f"{stack}.final_layer_norm.weight"] = draw(d)
            at = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            weights[at] = draw(32, T5["heads"])
            for i in range(T5[stack]):
                names = ["SelfAttention"] + (["EncDecAttention"] if stack == "decoder" else [])
                for layer, name in enumerate(names):
                    at = f"{stack}.block.{i}.layer.{layer}."
                    weights[at + "layer_norm.weight"] = draw(d)
                    for part in "qkv":
                        weights[f"{at}{name}.{part}.weight"] = draw(a, d)
                    weights[f"{at}{name}.o.weight"] = draw(d, a)
                at = f"{stack}.block.{i}.layer.{len(names)}."
                weights[at + "layer_norm.weight"] = draw(d)
                weights[at + "DenseReluDense.wi_0.weight"] = draw(ff, d)
                weights[at + "DenseReluDense.wi_1.weight"] = draw(ff, d)
                weights[at + "DenseReluDense.wo.weight"] = draw(d, ff)
        return weights

    def gpt2(self) -> Weights:
        d, ff = GPT2["d"], GPT2["ff"]
        weights = {
            "transformer.wte.weight": draw(GPT2["V"], d),
            "transformer.wpe.weight": draw(GPT2["positions"], d),
        }
        norms = ["transformer.ln_f"]
        for i in range(GPT2["layers"]):
            at = f"transformer.h.{i}."
            norms += [at + "ln_1", at + "ln_2"]
            shapes = {
                "attn.c_attn": (3 * d, d),
                "attn.c_proj": (d, d),
                "mlp.c_fc": (ff, d),
                "mlp.c_proj": (d, ff),
            }
            for name, shape in shapes.items():
                weights[f"{at}{name}.weight"] = draw(*shape)
                weights[f"{at}{name}.bias"] = draw(shape[0])
        for name in norms:
            weights[name + ".weight"] = draw(d)
            weights[name + ".bias"] = draw(d)
        return weights

    # Megatron and DeepSpeed

    def shards(self, weights: Weights, count: int) -> list[Weights]:
        """The ``module`` of each rank; CPM-1 names if the weights are GPT-2's."""
        split = _gpt2_shards if "transformer.wte.weight" in weights else _t5_shards
        return split(weights, count)

    def deepspeed(self, shards: list[Weights], *, legacy: bool = False, name: str = "ds") -> Path:
        root = self.folder / name
        (root / "80000").mkdir(parents=True)
        (root / "latest_checkpointed_iteration.txt").write_text("80000")
        for rank, module in enumerate(shards):
            state = {
                "module": OrderedDict(module),
                "optimizer": None,
                "lr_scheduler": {"start_lr": 1e-4, "warmup_iter": 3000.0},
                "csr_tensor_module_names": set(),
                "skipped_steps": 12,
                "global_steps": 80000,
                "mp_world_size": len(shards),
                "iteration": 80000,
                "random_rng_state": random.getstate(),
                "np_rng_state": np.random.get_state(),
                "torch_rng_state": torch.get_rng_state(),
                "cuda_rng_state": torch.get_rng_state(),
                "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
            }
            torch.save(
                state,
                root / "80000" / f"mp_rank_{rank:02d}_model_states.pt",
                _use_new_zipfile_serialization=not legacy,
            )
        return root

    def megatron(self, shards: list[Weights]) -> Path:
        root = self.folder / "megatron"
        for rank, module in enumerate(shards):
            folder = root / "iter_0000007" / f"mp_rank_{rank:02d}"
            folder.mkdir(parents=True)
            state = {
                "args": argparse.Namespace(hidden_size=8, fp16=True),
                "iteration": 7,
                "model": module,
                "checkpoint_version": 1.0,
            }
            torch.save(state, folder / "model_optim_rng.pt")
        (root / "latest_checkpointed_iteration.txt").write_text("7\n")
        return root

    # Hugging Face

    def hugging_face(
        self, config: dict[str, object], weights: Weights, layout: str = "safetensors"
    ) -> Path:
        folder = self.folder / "hf"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        names = list(weights)
        if layout == "safetensors":
            safetensors.torch.save_file(weights, folder / "model.safetensors")
        elif layout == "bin":
            torch.save(OrderedDict(weights), folder / "pytorch_model.bin")
        else:
            stem, save, suffix = {
                "sharded safetensors": ("model", safetensors.torch.save_file, "safetensors"),
                "sharded bin": ("pytorch_model", torch.save, "bin"),
            }[layout]
            halves = {f"{stem}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
            weight_map = {}
            for file, members in halves.items():
                save({name: weights[name] for name in members}, folder / file)
                weight_map |= dict.fromkeys(members, file)
            index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
            (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
        return folder

    # BMInf

    def bminf(self, tree: dict[str, object]) -> Path:
        folder = self.folder / "bminf"
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint.pt").write_bytes(record(tree))
        return folder


def record(tree: dict[str, object]) -> bytes:
    """One BMInf record: a nested dict whose leaves are tensors."""
    tensors = {name: t for name, t in tree.items() if isinstance(t, Tensor)}
    parts = {name: t for name, t in tree.items() if isinstance(t, dict)}
    out = struct.pack("<II", len(tensors), len(parts))
    codes = {torch.int8: 0, torch.float16: 1, torch.float32: 2}
    for name, tensor in tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        out += struct.pack("<I", len(name)) + name.encode()
        out += struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        out += struct.pack("<IB", len(raw), codes[tensor.dtype]) + raw
    for name, part in parts.items():
        out += struct.pack("<I", len(name)) + name.encode() + record(part)
    return out


def _rows(tensor: Tensor, count: int) -> list[Tensor]:
    return [chunk.clone() for chunk in tensor.chunk(count, 0)]


def _columns(tensor: Tensor, count: int) -> list[Tensor]:
    return [chunk.clone() for chunk in tensor.chunk(count, 1)]


def _fused(parts: list[Tensor], count: int) -> list[Tensor]:
    return [torch.cat([part.chunk(count, 0)[rank] for part in parts]) for rank in range(count)]


def _gpt2_shards(weights: Weights, count: int) -> list[Weights]:
    whole: dict[str, list[Tensor]] = {
        "word_embeddings.weight": _rows(weights["transformer.wte.weight"], count),
        "position_embeddings.weight": [weights["transformer.wpe.weight"]] * count,
    }
    for part in ("weight", "bias"):
        whole[f"transformer.final_layernorm.{part}"] = [weights[f"transformer.ln_f.{part}"]] * count
    for i in range(GPT2["layers"]):
        ours, theirs = f"transformer.h.{i}.", f"transformer.layers.{i}."
        for part in ("weight", "bias"):
            for a, b in (("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2")):
                whole[f"{theirs}{a}.{part}"] = [weights[f"{ours}{b}.{part}"]] * count
            qkv = weights[f"{ours}attn.c_attn.{part}"].chunk(3, 0)
            whole[f"{theirs}attention.query_key_value.{part}"] = _fused(list(qkv), count)
            wide = weights[f"{ours}mlp.c_fc.{part}"]
            whole[f"{theirs}mlp.dense_h_to_4h.{part}"] = _rows(wide, count)
        for a, b in (("attention.dense", "attn.c_proj"), ("mlp.dense_4h_to_h", "mlp.c_proj")):
            whole[f"{theirs}{a}.weight"] = _columns(weights[f"{ours}{b}.weight"], count)
            whole[f"{theirs}{a}.bias"] = [weights[f"{ours}{b}.bias"]] * count
    return [{name: shards[rank] for name, shards in whole.items()} for rank in range(count)]


def _t5_shards(weights: Weights, count: int) -> list[Weights]:
    embedding = _rows(weights["shared.weight"], count)
    whole: dict[str, list[Tensor]] = {
        "word_embeds.weight": embedding,
        "encoder.word_embeds.weight": embedding,
        "decoder.word_embeds.weight": [shard.clone() for shard in embedding],
        "lm_head.weight": _rows(weights["lm_head.weight"], count),
    }
    for stack in ("encoder", "decoder"):
        final = weights[f"{stack}.final_layer_norm.weight"]
        whole[f"{stack}.final_layernorm.weight"] = [final] * count
        for i in range(T5[stack]):
            ours, theirs = f"{stack}.block.{i}.layer.", f"{stack}.blocks.{i}."
            own = theirs + "self_attn.self_attn."
            q, k, v = (weights[f"{ours}0.SelfAttention.{p}.weight"] for p in "qkv")
            whole[own + "project.weight"] = _fused([q, k, v], count)
            whole[own + "dense.weight"] = _columns(
                weights[ours + "0.SelfAttention.o.weight"], count
            )
            if i == 0:
                table = weights[ours + "0.SelfAttention.relative_attention_bias.weight"]
                whole[own + "relative_attention_bias.weight"] = _columns(table, count)
            norms = ["self_attn", "ff"]
            if stack == "decoder":
                norms.insert(1, "cross_attn")
                cross = theirs + "cross_attn.cross_attn."
                q, k, v = (weights[f"{ours}1.EncDecAttention.{p}.weight"] for p in "qkv")
                whole[cross + "project_q.weight"] = _rows(q, count)
                whole[cross + "project_kv.weight"] = _fused([k, v], count)
                whole[cross + "dense.weight"] = _columns(
                    weights[ours + "1.EncDecAttention.o.weight"], count
                )
            for layer, norm in enumerate(norms):
                scale = weights[f"{ours}{layer}.layer_norm.weight"]
                whole[f"{theirs}{norm}.layer_norm.weight"] = [scale] * count
            dense = f"{ours}{len(norms) - 1}.DenseReluDense."
            for part in ("wi_0", "wi_1"):
                whole[f"{theirs}ff.dense_relu_dense.{part}.weight"] = _rows(
                    weights[f"{dense}{part}.weight"], count
                )
            whole[theirs + "ff.dense_relu_dense.wo.weight"] = _columns(
                weights[dense + "wo.weight"], count
            )
    return [{name: shards[rank] for name, shards in whole.items()} for rank in range(count)]


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    torch.manual_seed(7)
    return Maker(tmp_path)
