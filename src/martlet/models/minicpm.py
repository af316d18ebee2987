"""MiniCPM 1, 2 and 4: Llama with scaled embeddings, scaled residuals and scaled logits.

What attention and the gated network compute is multiplied by s = scale_depth /
sqrt(num_hidden_layers) before it is added. Here the hidden state is kept divided by s, so that they
are added as they are: an RMS norm gives the same when its epsilon is divided by the square of s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from martlet.layers.attention import Pass
from martlet.layers.decoder_cache import DecoderCache
from martlet.models.architecture import Stack, Weights
from martlet.models.fields import Fields
from martlet.models.rotary_config import Defaults, RotaryConfig, read_sizes
from martlet.models.rotary_decoder import Extras, RotaryDecoder

__all__ = ["MiniCPM", "MiniCPMConfig", "ScaledConfig", "ScaledDecoder"]

_DEFAULTS = Defaults(tie_word_embeddings=True)


@dataclass(frozen=True, kw_only=True)
class ScaledConfig(RotaryConfig):
    """The multipliers of OpenBMB's models.

    The embedding is multiplied by ``scale_emb``, what a block adds by ``residual_scale``, the
    hidden state before the output matrix divided by hidden_size / ``dim_model_base``.
    """

    scale_emb: float
    scale_depth: float
    dim_model_base: float

    @property
    def residual_scale(self) -> float:
        """What the result of attention or of the gated network is multiplied by."""
        return self.scale_depth / math.sqrt(self.num_hidden_layers)


class ScaledDecoder(RotaryDecoder):
    """Blocks whose results are scaled before they are added."""

    config: ScaledConfig

    def __init__(self, config: ScaledConfig) -> None:
        super().__init__(config)
        self._eps = config.rms_norm_eps / config.residual_scale**2

    def embed(
        self,
        fixed: Weights,
        stack: Stack,
        token_ids: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Pass]]:
        """Scaled token embeddings over what residuals are scaled by, and the pass."""
        hidden, step = super().embed(fixed, stack, token_ids, cache, lengths)
        return hidden * (self.config.scale_emb / self.config.residual_scale), step

    def head(self, fixed: Weights, stack: Stack, hidden: Tensor) -> Tensor:
        """Final norm and scaled logits, float32."""
        scale = self.config.dim_model_base / self.config.hidden_size
        return super().head(fixed, stack, hidden) * scale


@dataclass(frozen=True, kw_only=True)
class MiniCPMConfig(ScaledConfig):
    """The fields of a MiniCPM config.json that change results."""

    attention_bias: bool

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> MiniCPMConfig:
        """Read and check a config.json.

        MiniCPM4 may name a ``sparse_config``: attention becomes sparse from a length on, and below
        it is what is computed here. Positions end before that length then.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, _DEFAULTS)
        own = cls(
            **sizes,
            scale_emb=fields.positive("scale_emb", 1.0),
            scale_depth=fields.positive("scale_depth", 1.0),
            dim_model_base=fields.positive("dim_model_base", 1.0),
            attention_bias=fields.flag("attention_bias", False),
        )
        # What the initial weights were drawn by.
        fields.ignore("mup_denominator")
        dense_tokens = _dense_tokens(fields)
        fields.refuse_unknown()
        if dense_tokens is None or dense_tokens >= own.max_position_embeddings:
            return own
        return dataclasses.replace(own, max_position_embeddings=dense_tokens)


class MiniCPM(ScaledDecoder):
    """The MiniCPM architecture with one configuration."""

    model_type = "minicpm"
    config: MiniCPMConfig

    def __init__(self, config: MiniCPMConfig) -> None:
        super().__init__(config)

    @property
    def extras(self) -> Extras:
        """Biases as config.json says."""
        return Extras(
            has_qkv_bias=self.config.attention_bias, has_out_bias=self.config.attention_bias
        )


def _dense_tokens(fields: Fields) -> int | None:
    """How long a text may become whose attention is not sparse; None without any limit."""
    value = fields.get("sparse_config")
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise fields.bad("sparse_config", value, "a group of settings")
    settings = Fields(value, "sparse_config in config.json")
    length = settings.size("dense_len", 8192)
    if length == 1:
        raise settings.bad("dense_len", length, "a length from which on attention is sparse")
    return length - 1
