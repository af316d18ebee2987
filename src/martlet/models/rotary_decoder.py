"""What decoders with rotary positions and a gated network share: Llama and its many heirs.

A family's own file says what its config.json may hold, which tensors its layers have, and where
its equations differ from those of ``block`` here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from martlet.kernels import ops
from martlet.layers.attention import Heads, Pass, self_attention
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.linear import gated_linear, linear, linears, vector
from martlet.layers.sight import Sight
from martlet.models.architecture import BlockSpec, LinearInput, Stack, TensorSpec, Weights
from martlet.models.decoder_only import DecoderOnly
from martlet.models.rotary_config import RotaryConfig
from martlet.models.specs import linear_specs, norm_specs

__all__ = ["Extras", "RotaryDecoder"]

_EMBED = "model.embed_tokens.weight"
_NORM = "model.norm"
_HEAD = "lm_head.weight"
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUT = "self_attn.o_proj"
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_BEFORE_ATTENTION = "input_layernorm"
_GATE, _UP, _DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


@dataclass(frozen=True)
class Extras:
    """What layers have beside two norms and seven matrices: biases, and norms of each head."""

    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_mlp_bias: bool = False
    has_head_norms: bool = False


class RotaryDecoder(DecoderOnly):
    """One stack of blocks, each attention and then a gated network, behind RMS norms.

    ``sights`` are the kinds of layers by name and ``kinds`` names the kind of each; without them
    all layers see everything. A subclass may name another norm before the gated network, norms
    that what a half makes goes through before it is added, and what is added to the weights of
    norms.
    """

    before_mlp = "post_attention_layernorm"
    after_attention: str | None = None
    after_mlp: str | None = None
    norm_offset = 0.0

    def __init__(
        self,
        config: RotaryConfig,
        sights: Mapping[str, Sight] | None = None,
        kinds: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            config.vocab_size,
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            config.max_positions,
        )
        self.config = config
        self._eps = config.rms_norm_eps
        self._sights = {"full": Sight(config.rotary)} if sights is None else dict(sights)
        self._kinds = ("full",) * config.num_hidden_layers if kinds is None else tuple(kinds)
        assert len(self._kinds) == config.num_hidden_layers
        self._heads = Heads(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
        )

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The fixed block and one block a layer, in file order."""
        table = (self.config.vocab_size, self.config.hidden_size)
        fixed = [TensorSpec(_EMBED, table, "embedding"), *self._norm_specs(_NORM)]
        if not self.config.tie_word_embeddings:
            fixed.append(TensorSpec(_HEAD, table, "linear"))
        return self._specs(fixed, "model.layers.{}.", self._layer_specs())

    @property
    def extras(self) -> Extras:
        """What the layers of the family have more."""
        return Extras()

    def _layer_specs(self) -> tuple[TensorSpec, ...]:
        """The tensors of a layer."""
        return (
            *self._norm_specs(_BEFORE_ATTENTION),
            *self._attention_specs(),
            *self._norm_specs(self.after_attention),
            *self._norm_specs(self.before_mlp),
            *self._gated_specs(),
            *self._norm_specs(self.after_mlp),
        )

    def _norm_specs(self, name: str | None) -> tuple[TensorSpec, ...]:
        return () if name is None else norm_specs(name, self.config.hidden_size, has_bias=False)

    def _attention_specs(self) -> tuple[TensorSpec, ...]:
        """Queries, keys, values and output."""
        config, extras = self.config, self.extras
        heads = (config.num_attention_heads, *2 * (config.num_key_value_heads,))
        specs: list[TensorSpec] = []
        for name, number in zip(_QKV, heads, strict=True):
            width = number * config.head_dim
            specs += linear_specs(name, width, config.hidden_size, has_bias=extras.has_qkv_bias)
        width = heads[0] * config.head_dim
        specs += linear_specs(_OUT, config.hidden_size, width, has_bias=extras.has_out_bias)
        for name in _HEAD_NORMS if extras.has_head_norms else ():
            specs += norm_specs(name, config.head_dim, has_bias=False)
        return tuple(specs)

    def _gated_specs(self) -> tuple[TensorSpec, ...]:
        hidden_size, inner = self.config.hidden_size, self.config.intermediate_size
        has_bias = self.extras.has_mlp_bias
        return (
            *linear_specs(_GATE, inner, hidden_size, has_bias=has_bias),
            *linear_specs(_UP, inner, hidden_size, has_bias=has_bias),
            *linear_specs(_DOWN, hidden_size, inner, has_bias=has_bias),
        )

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """Norms are before q, k, v and before gate and up; o reads values, down what up makes."""
        assert stack == "decoder"
        config = self.config
        # Where several heads of queries share one of values, so would they share its scales.
        is_grouped = config.num_attention_heads != config.num_key_value_heads
        return (
            LinearInput(
                tuple(f"{name}.weight" for name in _QKV), self._scalable(_BEFORE_ATTENTION)
            ),
            LinearInput((f"{_OUT}.weight",), () if is_grouped else self._rows_of(_QKV[-1])),
            LinearInput((f"{_GATE}.weight", f"{_UP}.weight"), self._scalable(self.before_mlp)),
            LinearInput((f"{_DOWN}.weight",), self._rows_of(_UP)),
        )

    def head_input(self) -> LinearInput:
        """The final norm; a table that is tied is also looked up, and so cannot be scaled."""
        if self.config.tie_word_embeddings:
            return LinearInput((_EMBED,))
        return LinearInput((_HEAD,), self._scalable(_NORM))

    def _scalable(self, norm: str) -> tuple[str, ...]:
        """A norm whose output is proportional to its weights, which an offset prevents."""
        return () if self.norm_offset else (f"{norm}.weight",)

    def _rows_of(self, name: str) -> tuple[str, ...]:
        """What makes the channels of a linear layer's output: its rows, and its bias."""
        wanted = (f"{name}.weight", f"{name}.bias")
        return tuple(spec.name for spec in self._layer_specs() if spec.name in wanted)

    def embed(
        self,
        fixed: Weights,
        stack: Stack,
        token_ids: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Pass]]:
        """Token embeddings, in the dtype of the final norm's weight, and a pass a kind of layers.

        Positions come in by turning queries and keys.
        """
        assert stack == "decoder"
        hidden = ops.embedding(fixed[_EMBED], token_ids, vector(fixed, f"{_NORM}.weight").dtype)
        return hidden, self._passes(self._sights, hidden, cache, lengths)

    def block(
        self,
        stack: Stack,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: dict[str, Pass],
        cache: DecoderCache | None,
    ) -> Tensor:
        """Attention, then the gated network, each added to what it read.

        The last block advances the cache.
        """
        mixed = self._attention(index, weights, hidden, step, cache)
        hidden = self._add(weights, _OUT, mixed, hidden, self.after_attention)
        inner = self._gated(weights, hidden)
        hidden = self._add(weights, _DOWN, inner, hidden, self.after_mlp)
        self._leave(index, step[self._kinds[index]].counts, cache)
        return hidden

    def _attention(
        self,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: dict[str, Pass],
        cache: DecoderCache | None,
    ) -> Tensor:
        """What the heads of a layer gather, before its output matrix."""
        norm = self._norm(weights, _BEFORE_ATTENTION)
        qkv = linears(weights, _QKV, hidden, norm=norm)
        norms = None
        if f"{_HEAD_NORMS[0]}.weight" in weights:
            norms = self._norm(weights, _HEAD_NORMS[0]), self._norm(weights, _HEAD_NORMS[1])
        return self_attention(qkv, self._heads, step[self._kinds[index]], cache, index, norms)

    def _gated(self, weights: Weights, hidden: Tensor) -> Tensor:
        """What the gated network makes, before its output matrix."""
        norm = self._norm(weights, self.before_mlp)
        return gated_linear(weights, _GATE, _UP, hidden, self.config.hidden_act, norm=norm)

    def _add(
        self, weights: Weights, name: str, inner: Tensor, hidden: Tensor, norm: str | None
    ) -> Tensor:
        """The hidden state and what a half of the block makes, normalised if the family does."""
        if norm is None:
            return linear(weights, name, inner, residual=hidden)
        return ops.add_norm(linear(weights, name, inner), self._norm(weights, norm), hidden)

    def _norm(self, weights: Weights, name: str) -> ops.Norm:
        return ops.Norm(vector(weights, f"{name}.weight"), None, self._eps, self.norm_offset)

    def head(self, fixed: Weights, stack: Stack, hidden: Tensor) -> Tensor:
        """Final norm and logits, float32."""
        assert stack == "decoder"
        name = _EMBED if self.config.tie_word_embeddings else _HEAD
        return ops.logits(hidden, fixed[name], norm=self._norm(fixed, _NORM))
