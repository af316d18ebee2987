"""Every variant of every family where it is computed otherwise: in tiles of integers, on a GPU.

The measure is the same model in float32 on a processor, which other tests hold to transformers.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle_routes import ROUTES, Model, long
from oracle_variants import FAMILIES, VARIANTS, Variant, variants_of
from torch import Tensor

from martlet.compression.requantize import in_formats
from martlet.layers.kv_cache import KVCache
from martlet.models.architecture import Stack
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT8
from martlet.quantization.scheme import QuantizedTensor, tiled

# The config.json of a model that also sees is flattened before an architecture reads it.
FLAT = [variant for variant in VARIANTS if "text_config" not in FAMILIES[variant.family].sizes]
# The first of each family; the others differ from it in nothing that tiles could touch.
PLAIN = [variant for variant in FLAT if variant is variants_of(variant.family)[0]]
by_variant = pytest.mark.parametrize("variant", FLAT, ids=lambda variant: variant.id)
CPU, HEAD_DIM = torch.device("cpu"), 16  # what the kernels of a GPU take begins at 8


class _Elsewhere(Model):
    """A model whose weights are on a device; what it reads and gives is in main memory."""

    def run(
        self,
        stack: Stack,
        token_ids: Tensor,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        device = next(iter(self.blocks["decoder.0"].values())).device
        return super().run(stack, token_ids.to(device), cache, lengths).cpu()


def _config(variant: Variant) -> dict[str, Any]:
    """A config.json whose heads are as wide as kernels take them."""
    family = FAMILIES[variant.family]
    config = {"model_type": variant.family, **family.sizes, **variant.options}
    if family.renamed is not None:
        config = family.renamed(config)
    heads = next(name for name in ("num_attention_heads", "n_head") if name in config)
    hidden = next(name for name in ("hidden_size", "n_embd") if name in config)
    config[hidden] = config[heads] * HEAD_DIM
    if "head_dim" in config:
        config["head_dim"] = HEAD_DIM
    if variant.family != "minicpm3":  # whose rotated part has a size of its own
        config["rope_parameters"] = _fitting(config.get("rope_parameters"))
    return config


def _fitting(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rope settings with a factor for each of the pairs there are."""
    if settings is None or "long_factor" not in settings:
        return settings
    num_pairs = int(HEAD_DIM * settings.get("partial_rotary_factor", 1.0)) // 2
    factors = {
        name: [start + pair for pair in range(num_pairs)]
        for name, start in (("short_factor", 1.0), ("long_factor", 2.0))
    }
    return {**settings, **factors}


def _errors(ours: Model, exact: Model, variant: Variant) -> dict[str, float]:
    def reference(token_ids: Tensor) -> Any:
        return SimpleNamespace(logits=exact.run("decoder", token_ids))

    routes = dict(ROUTES)
    if variant.long_tokens is not None:
        routes["long"] = partial(long, num_tokens=200)
    return {name: route(ours, reference) for name, route in routes.items()}


@pytest.mark.gpu
@by_variant
def test_floats_on_a_gpu_give_the_logits_of_a_processor(
    variant: Variant, random_model: Any
) -> None:
    model = random_model(load_architecture(_config(variant)))
    blocks = {
        name: {key: weight.cuda() for key, weight in weights.items()}
        for name, weights in model.blocks.items()
    }
    errors = _errors(_Elsewhere(model.architecture, blocks), model, variant)
    # float32 on both sides, sums in other orders.
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize(
    ("variant", "device"),
    [
        *(pytest.param(variant, "cpu", id=f"{variant.id}-cpu") for variant in PLAIN),
        *(
            pytest.param(variant, "cuda", id=f"{variant.id}-cuda", marks=pytest.mark.gpu)
            for variant in FLAT
        ),
    ],
)
def test_tiles_of_integers_give_about_the_logits_of_the_floats_they_stand_for(
    variant: Variant, device: str, random_model: Any
) -> None:
    model = random_model(load_architecture(_config(variant)))
    exact, tiles, place = {}, {}, torch.device(device)
    for spec in model.architecture.block_specs():
        formats = {t.name: None if t.kind == "other" else INT8 for t in spec.tensors}
        weights = in_formats(model.blocks[spec.name], formats, place)
        tiles[spec.name] = {
            key: tiled(weight.to(place))
            if isinstance(weight, QuantizedTensor)
            else weight.to(place)
            for key, weight in weights.items()
        }
        exact[spec.name] = {
            key: weight.dequantize(torch.float32).cpu()
            if isinstance(weight, QuantizedTensor)
            else weight.cpu()
            for key, weight in weights.items()
        }
    ours = _Elsewhere(model.architecture, tiles)
    errors = _errors(ours, Model(model.architecture, exact), variant)
    # A GPU rounds activations to float16, 2**-11, before every matrix.
    assert max(errors.values()) < 1e-2, errors
