"""GLM-4-0414 and GLM-Z1: GLM's blocks with a norm behind each half, before it is added."""

from __future__ import annotations

from martlet.models.glm import Glm

__all__ = ["Glm4"]


class Glm4(Glm):
    """The GLM-4-0414 architecture with one configuration; its fields are those of GLM."""

    model_type = "glm4"
    after_attention = "post_self_attn_layernorm"
    after_mlp = "post_mlp_layernorm"
