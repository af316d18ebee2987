"""The two architectures in trainable form; ``to_huggingface`` gives the published tensor names.

The forward passes follow the same definitions as ``martlet.models``, and a test compares the two;
training needs dropout and one compiled graph, inference needs a cache.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor, nn

from shapes import GPT2Config, T5Config

HuggingFace = tuple[dict[str, Any], dict[str, Tensor]]  # config.json, and the tensors by name


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads * size) as (batch, heads, tokens, size)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class GPT2Block(nn.Module):
    """LayerNorm, causal attention, LayerNorm, feed-forward."""

    def __init__(self, c: GPT2Config) -> None:
        super().__init__()
        d = c.n_embd
        self.heads, self.dropout = c.n_head, c.dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.fc, self.proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, of the shape of its input (batch, tokens, width)."""
        b, t, d = x.shape
        h = self.ln_1(x)
        q, k, v = (split_heads(f(h), self.heads) for f in (self.q, self.k, self.v))
        p = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        x = x + F.dropout(self.o(a.transpose(1, 2).reshape(b, t, d)), p)
        return x + F.dropout(self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh")), p)

    def to_huggingface(self) -> dict[str, Tensor]:
        """The block's tensors; linear weights are Conv1D's, (in, out)."""
        qkv = (self.q, self.k, self.v)
        out = {
            "attn.c_attn.weight": torch.cat([m.weight for m in qkv]).t(),
            "attn.c_attn.bias": torch.cat([m.bias for m in qkv]),
        }
        linears = {"attn.c_proj": self.o, "mlp.c_fc": self.fc, "mlp.c_proj": self.proj}
        for name, linear in linears.items():
            out[f"{name}.weight"], out[f"{name}.bias"] = linear.weight.t(), linear.bias
        for name, norm in {"ln_1": self.ln_1, "ln_2": self.ln_2}.items():
            out[f"{name}.weight"], out[f"{name}.bias"] = norm.weight, norm.bias
        return out


class GPT2(nn.Module):
    """The writer."""

    def __init__(self, c: GPT2Config) -> None:
        super().__init__()
        self.config = c
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        self.wpe = nn.Embedding(c.n_positions, c.n_embd)
        self.h = nn.ModuleList(GPT2Block(c) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                late = name.endswith(("o.weight", "proj.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * c.n_layer) if late else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocab)."""
        x: Tensor = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        x = F.dropout(x, self.config.dropout if self.training else 0.0)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def to_huggingface(self) -> HuggingFace:
        """config.json and tensors of a GPT2LMHeadModel."""
        c = self.config
        out = {f"transformer.{name}.weight": getattr(self, name).weight for name in ("wte", "wpe")}
        for i, block in enumerate(self.h):
            assert isinstance(block, GPT2Block)
            out |= {f"transformer.h.{i}.{name}": t for name, t in block.to_huggingface().items()}
        out |= {f"transformer.ln_f.{name}": t for name, t in self.ln_f.named_parameters()}
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **asdict(c)}
        config |= {"n_ctx": c.n_positions, "activation_function": "gelu_new"}
        config |= {"layer_norm_epsilon": 1e-5}
        config |= {"tokenizer_class": "CpmTokenizer", "tie_word_embeddings": True}
        del config["dropout"]
        return config, out


def relative_buckets(query: Tensor, key: Tensor, c: T5Config, bidirectional: bool) -> Tensor:
    """Bucket of each (query, key) distance, as T5 defines it."""
    distance = key[None, :] - query[:, None]
    buckets, base = c.relative_attention_num_buckets, torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        base = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    most = math.log(c.relative_attention_max_distance / exact)
    ratio = torch.log(distance.clamp(min=1).float() / exact) / most
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return base + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """T5's attention: a bias on the scores, no scale."""

    def __init__(self, c: T5Config) -> None:
        super().__init__()
        inner = c.num_heads * c.d_kv
        self.heads, self.dropout = c.num_heads, c.dropout
        self.q, self.k, self.v = (nn.Linear(c.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, c.d_model, bias=False)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """What ``x`` reads in ``memory``; ``bias`` is broadcast to (batch, heads, t, s)."""
        b, t, _ = x.shape
        q = split_heads(self.q(x), self.heads)
        k, v = (split_heads(f(memory), self.heads) for f in (self.k, self.v))
        p = self.dropout if self.training else 0.0
        mask = bias.to(q.dtype)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, scale=1.0)
        mixed: Tensor = self.o(a.transpose(1, 2).reshape(b, t, -1))
        return mixed


class T5Block(nn.Module):
    """Self attention, in the decoder attention to the encoder's output, gated feed-forward."""

    def __init__(self, c: T5Config, cross: bool) -> None:
        super().__init__()
        self.dropout = c.dropout
        self.norms = nn.ModuleList(
            nn.RMSNorm(c.d_model, eps=1e-6) for _ in range(3 if cross else 2)
        )
        self.self_attn = Attention(c)
        self.cross_attn = Attention(c) if cross else None
        self.wi_0, self.wi_1 = (nn.Linear(c.d_model, c.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(c.d_ff, c.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        memory: Tensor | None = None,
        cross_bias: Tensor | None = None,
    ) -> Tensor:
        """The block's output; ``memory`` is the encoder's, for a decoder's block."""
        p = self.dropout if self.training else 0.0
        h = self.norms[0](x)
        x = x + F.dropout(self.self_attn(h, h, bias), p)
        if self.cross_attn is not None:
            x = x + F.dropout(self.cross_attn(self.norms[1](x), memory, cross_bias), p)
        h = self.norms[-1](x)
        return x + F.dropout(self.wo(F.gelu(self.wi_0(h), approximate="tanh") * self.wi_1(h)), p)

    def to_huggingface(self) -> dict[str, Tensor]:
        """The block's tensors, named from the number of the sub-layer on."""
        attentions = {"0.SelfAttention": self.self_attn, "1.EncDecAttention": self.cross_attn}
        out: dict[str, Tensor] = {}
        for place, attention in attentions.items():
            if attention is not None:
                weights = attention.named_parameters()
                out |= {f"{place}.{name}": weight for name, weight in weights}
        for j, norm in enumerate(self.norms):
            out |= {f"{j}.layer_norm.{name}": weight for name, weight in norm.named_parameters()}
        last = len(self.norms) - 1
        for name in ("wi_0", "wi_1", "wo"):
            out[f"{last}.DenseReluDense.{name}.weight"] = getattr(self, name).weight
        return out


class T5(nn.Module):
    """The filler and the speaker."""

    def __init__(self, c: T5Config) -> None:
        super().__init__()
        self.config = c
        self.shared = nn.Embedding(c.vocab_size, c.d_model)
        self.lm_head = nn.Linear(c.d_model, c.vocab_size, bias=False)
        self.encoder = nn.ModuleList(T5Block(c, False) for _ in range(c.num_layers))
        self.decoder = nn.ModuleList(T5Block(c, True) for _ in range(c.num_decoder_layers))
        buckets = c.relative_attention_num_buckets
        self.encoder_bias, self.decoder_bias = (nn.Embedding(buckets, c.num_heads) for _ in "ed")
        self.encoder_norm, self.decoder_norm = (nn.RMSNorm(c.d_model, eps=1e-6) for _ in "ed")
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=self._initial_std(name, p))

    def _initial_std(self, name: str, p: Tensor) -> float:
        c = self.config
        if name.endswith("attn.q.weight"):
            return float((c.d_model * c.d_kv) ** -0.5)  # stands for the missing 1 / sqrt(d_kv)
        if name.endswith(("o.weight", "wo.weight")):
            return 0.02 / math.sqrt(c.num_layers + c.num_decoder_layers)
        if name in ("shared.weight", "lm_head.weight") or "_bias" in name:
            return 0.02
        return float(p.shape[1] ** -0.5)

    def _bias(self, table: nn.Embedding, length: int, bidirectional: bool) -> Tensor:
        at = torch.arange(length, device=table.weight.device)
        buckets = relative_buckets(at, at, self.config, bidirectional)
        bias: Tensor = table(buckets).permute(2, 0, 1)[None]
        return bias

    def forward(self, source: Tensor, source_mask: Tensor, target: Tensor) -> Tensor:
        """Logits (batch, target length, vocab); ``source_mask`` is True at real source tokens."""
        p = self.config.dropout if self.training else 0.0
        nothing = torch.zeros(source_mask.shape, device=source.device)
        cross_bias = nothing.masked_fill(~source_mask, -1e4)[:, None, None, :]
        memory = F.dropout(self._encode(source, cross_bias, p), p)
        t = target.shape[1]
        causal = torch.full((t, t), -1e4, device=source.device).triu(1)
        y = F.dropout(self.shared(target), p)
        bias = self._bias(self.decoder_bias, t, False) + causal
        bias = bias.expand(source.shape[0], -1, -1, -1)
        cross_bias = cross_bias.expand(-1, 1, t, -1)
        for block in self.decoder:
            y = block(y, bias, memory, cross_bias)
        logits: Tensor = self.lm_head(F.dropout(self.decoder_norm(y), p))
        return logits

    def _encode(self, source: Tensor, padding_bias: Tensor, p: float) -> Tensor:
        x = F.dropout(self.shared(source), p)
        bias = self._bias(self.encoder_bias, source.shape[1], True) + padding_bias
        for block in self.encoder:
            x = block(x, bias)
        normed: Tensor = self.encoder_norm(x)
        return normed

    def to_huggingface(self) -> HuggingFace:
        """config.json and tensors in T5 v1.1 names."""
        c = self.config
        out = {"shared.weight": self.shared.weight, "lm_head.weight": self.lm_head.weight}
        for stack, blocks in (("encoder", self.encoder), ("decoder", self.decoder)):
            for i, block in enumerate(blocks):
                assert isinstance(block, T5Block)
                tensors = block.to_huggingface()
                out |= {f"{stack}.block.{i}.layer.{name}": t for name, t in tensors.items()}
            name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            out[name] = getattr(self, f"{stack}_bias").weight
            out[f"{stack}.final_layer_norm.weight"] = getattr(self, f"{stack}_norm").weight
        config = {"architectures": ["T5ForConditionalGeneration"], **asdict(c)}
        config |= {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6}
        config |= {"tie_word_embeddings": False, "is_encoder_decoder": True, "n_positions": 512}
        del config["dropout"]
        return config, out
