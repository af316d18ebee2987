"""The shapes of the bundled models, and of the larger writer that teaches the small one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPT2Config:
    """CPM-1's form: learned positions, LayerNorm before, tied head."""

    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int = 512
    dropout: float = 0.1


@dataclass(frozen=True)
class T5Config:
    """CPM-2's and EVA's form: relative bias, RMS norm, gated gelu, no attention scale, own head."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout: float = 0.1
    model_type: str = "t5"


CONFIGS: dict[str, GPT2Config | T5Config] = {
    "cpm1-teacher": GPT2Config(vocab_size=30000, n_embd=640, n_layer=12, n_head=10, dropout=0.2),
    "cpm1-mini": GPT2Config(vocab_size=30000, n_embd=320, n_layer=11, n_head=5, dropout=0.05),
    "cpm2-mini": T5Config(26240, 256, 64, 640, 4, 6, 6, dropout=0.05),
    "eva-mini": T5Config(30000, 256, 64, 640, 4, 5, 5, dropout=0.1, model_type="eva"),
}
