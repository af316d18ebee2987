"""Tiny random models of transformers, saved as a folder that our converter reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from oracle_variants import FAMILIES, Family, Variant

__all__ = ["make_reference"]


def make_reference(variant: Variant, folder: Path, **options: Any) -> Any:
    """transformers' model of a variant with random weights, and its files in ``folder``."""
    family = FAMILIES[variant.family]
    config = getattr(transformers, family.config)(
        **{**family.sizes, **variant.options, **options}, attn_implementation="eager"
    )
    model = getattr(transformers, family.model)(config).eval()
    fill(model, family)
    model.save_pretrained(folder)
    if family.renamed is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(family.renamed(json.loads(path.read_text()))))
    return model


def fill(model: Any, family: Family) -> None:
    """Weights that keep activations near 1, so that every part of the model shows in the logits."""
    generator = torch.Generator().manual_seed(7)
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if any(parameter is table for table in tables):
                parameter.copy_(noise / family.embedding_scale)
            elif parameter.dim() == 2:
                parameter.copy_(noise * 1.2 * parameter.shape[1] ** -0.5)
            else:
                is_norm = name.endswith("weight")
                parameter.copy_(family.norm_center * is_norm + 0.2 * noise)
