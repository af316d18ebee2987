"""Tiny models of all architectures with random float weights, for walks and what uses them."""

from dataclasses import dataclass

import pytest
import torch

from martlet.compression.walk import Sample
from martlet.models.config import load_architecture

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 53,
    "n_positions": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 53,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
CONFIGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "t5": T5,
    "t5-tied": {**T5, "tie_word_embeddings": True, "feed_forward_proj": "relu"},
}


@dataclass(frozen=True)
class TinyModel:
    """An architecture and its weights by block; a source of blocks as stores and others are."""

    architecture: object
    blocks: dict

    def block(self, name):
        return self.blocks[name]

    def to(self, dtype):
        blocks = {
            name: {key: weight.to(dtype) for key, weight in weights.items()}
            for name, weights in self.blocks.items()
        }
        return TinyModel(self.architecture, blocks)


def _random_model(name, seed=20):
    architecture = load_architecture(CONFIGS[name])
    generator = torch.Generator().manual_seed(seed)
    blocks = {}
    for spec in architecture.block_specs():
        weights = {}
        for tensor in spec.tensors:
            value = torch.randn(tensor.shape, generator=generator)
            if tensor.kind == "linear":
                value = value * 1.2 * tensor.shape[1] ** -0.5
            elif len(tensor.shape) == 1 and tensor.name.endswith("weight"):
                value = 1 + 0.1 * value
            weights[tensor.name] = value
        blocks[spec.name] = weights
    return TinyModel(architecture, blocks)


def _random_samples(architecture, lengths, seed=3):
    """One sample a length; the encoder, where there is one, reads a few tokens more."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count):
        return tuple(torch.randint(0, 53, (count,), generator=generator).tolist())

    return [
        Sample(ids(length), ids(length + 3) if architecture.has_encoder else ())
        for length in lengths
    ]


@pytest.fixture(scope="session")
def tiny_model():
    """``tiny_model("gpt2")``: seeded weights, scaled so that logits are far from flat."""
    return _random_model


@pytest.fixture(scope="session")
def random_samples():
    return _random_samples
