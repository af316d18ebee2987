"""GLM-4-0414 and GLM-Z1: GLM's blocks with a norm behind each half, before it is added."""

from __future__ import annotations

from torch import Tensor

from martlet.kernels import ops
from martlet.layers.attention import Pass
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.linear import linear
from martlet.models.architecture import Stack, TensorSpec, Weights
from martlet.models.glm import Glm

__all__ = ["Glm4"]


class Glm4(Glm):
    """The GLM-4-0414 architecture with one configuration; its fields are those of GLM."""

    model_type = "glm4"

    def _layer_specs(self) -> tuple[TensorSpec, ...]:
        return (
            *super()._layer_specs(),
            *self._norm_specs("post_self_attn_layernorm"),
            *self._norm_specs("post_mlp_layernorm"),
        )

    def block(
        self,
        stack: Stack,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: dict[str, Pass],
        cache: DecoderCache | None,
    ) -> Tensor:
        """Attention, then the gated network, each normalised and added to what it read.

        The last block advances the cache.
        """
        mixed = self._attention(index, weights, hidden, step, cache)
        half = linear(weights, "self_attn.o_proj", mixed)
        hidden = ops.add_norm(half, self._norm(weights, "post_self_attn_layernorm"), hidden)
        half = linear(weights, "mlp.down_proj", self._gated(weights, hidden))
        hidden = ops.add_norm(half, self._norm(weights, "post_mlp_layernorm"), hidden)
        return self._leave(index, hidden, step, cache)
