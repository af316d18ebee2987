"""The routes by which logits may come about, and how far each is from those of transformers.

An error is the largest difference of a logit over the largest logit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from martlet.checkpoint.store import open_store
from martlet.conversion.convert import convert
from martlet.layers.kv_cache import KVCache
from martlet.models.architecture import FIXED, Architecture, Stack, Weights
from martlet.models.config import load_architecture
from martlet.quantization.kv_form import KVForm

__all__ = ["ROUTES", "Model", "error_of", "open_converted", "random_ids"]

VOCAB_SIZE = 101
SHORT_TOKENS = 23


@dataclass(frozen=True)
class Model:
    """An architecture with its weights by block name, and the plainest driver of its passes."""

    architecture: Architecture
    blocks: Mapping[str, Weights]

    def run(
        self,
        stack: Stack,
        token_ids: Tensor,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """One pass over a stack and what its head makes of it."""
        fixed = self.blocks[FIXED]
        hidden, step = self.architecture.embed(fixed, stack, token_ids, cache, lengths)
        for index in range(self.architecture.num_blocks(stack)):
            weights = self.blocks[f"{stack}.{index}"]
            hidden = self.architecture.block(stack, index, weights, hidden, step, cache)
        return self.architecture.head(fixed, stack, hidden)

    def new_cache(
        self,
        num_slots: int,
        max_tokens: int,
        max_encoder_tokens: int = 0,
        kv_cache: KVForm = "none",
    ) -> KVCache:
        """An empty cache in the type of the norms."""
        like = next(iter(self.blocks["decoder.0"].values()))
        assert isinstance(like, Tensor)  # a norm comes first
        return self.architecture.new_cache(
            num_slots, max_tokens, like, max_encoder_tokens, kv_cache
        )

    def encode(self, token_ids: Tensor, cache: KVCache, lengths: Tensor | None = None) -> Tensor:
        """The encoder's output, put into the cache."""
        hidden = self.run("encoder", token_ids, None, lengths)
        whole = torch.full((token_ids.shape[0],), token_ids.shape[1])
        cache.set_encoder_output(hidden, whole if lengths is None else lengths)
        return hidden


def open_converted(source: Path, folder: Path, quantize: str = "none") -> Model:
    """A foreign checkpoint taken through our converter."""
    convert(source, folder, quantize=quantize)
    store = open_store(folder)
    architecture = load_architecture(store.config)
    blocks = {spec.name: store.block(spec.name) for spec in architecture.block_specs()}
    return Model(architecture, blocks)


def random_ids(*shape: int) -> Tensor:
    """The same tokens for everyone."""
    return torch.randint(0, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(11))


def error_of(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest logit."""
    assert theirs.std() > 0.5, "flat logits would hide any mistake"
    assert ours.dtype == torch.float32
    return float((ours - theirs).abs().max() / theirs.abs().max())


def whole(model: Model, reference: Any) -> float:
    """All tokens in one pass, with and without a cache."""
    token_ids = random_ids(2, SHORT_TOKENS)
    theirs = reference(token_ids).logits
    alone = error_of(model.run("decoder", token_ids), theirs)
    cache = model.new_cache(2, SHORT_TOKENS)
    return max(alone, error_of(model.run("decoder", token_ids, cache), theirs))


def steps(model: Model, reference: Any) -> float:
    """A beginning, then a pass of several tokens, then token by token."""
    token_ids = random_ids(2, SHORT_TOKENS)
    cache = model.new_cache(2, SHORT_TOKENS)
    parts = token_ids.split([6, 9, *[1] * 8], dim=1)
    ours = torch.cat([model.run("decoder", part, cache) for part in parts], dim=1)
    return error_of(ours, reference(token_ids).logits)


def device_steps(model: Model, reference: Any) -> float:
    """Steps whose lengths lie where a device counts them, from rows of unequal length."""
    token_ids = random_ids(2, SHORT_TOKENS)
    theirs = reference(token_ids).logits
    cache = model.new_cache(3, SHORT_TOKENS)
    begun = [5, 14]
    rows = cache.rows([0, 1])
    model.run("decoder", token_ids[:, :14], rows, torch.tensor(begun))
    cache.begin_steps()
    cache.steps.rest(2)
    errors = []
    for step in range(SHORT_TOKENS - max(begun)):
        new = [token_ids[row, start + step] for row, start in enumerate(begun)]
        logits = model.run("decoder", torch.stack([*new, new[0]])[:, None], cache)
        for row, start in enumerate(begun):
            errors.append((logits[row, 0] - theirs[row, start + step]).abs().max())
        cache.steps.step_lengths[:2] += 1
    cache.end_steps([length + step + 1 for length in begun] + [0])
    return float(torch.stack(errors).max() / theirs.abs().max())


def batch(model: Model, reference: Any) -> float:
    """Rows of unequal length beside each other, and what comes after them."""
    lengths = [17, 4, 30]
    token_ids, following = random_ids(3, 30), random_ids(3, 2)
    cache = model.new_cache(3, 40)
    ours = model.run("decoder", token_ids, cache, torch.tensor(lengths))
    after = model.run("decoder", following, cache)
    errors = []
    for row, length in enumerate(lengths):
        alone = torch.cat([token_ids[row : row + 1, :length], following[row : row + 1]], dim=1)
        both = torch.cat([ours[row, :length], after[row]])
        errors.append(error_of(both, reference(alone).logits[0]))
    return max(errors)


def long(model: Model, reference: Any, num_tokens: int) -> float:
    """A text up to late positions, its last tokens one by one."""
    token_ids = random_ids(1, num_tokens)
    theirs = reference(token_ids).logits
    cache = model.new_cache(1, num_tokens)
    parts = token_ids.split([num_tokens - 10] + [1] * 10, dim=1)
    ours = torch.cat([model.run("decoder", part, cache) for part in parts], dim=1)
    return max(error_of(ours, theirs), error_of(model.run("decoder", token_ids), theirs))


def bfloat16(model: Model, reference: Any) -> tuple[float, float]:
    """What computing in bfloat16 costs, ours and that of transformers; weights are the same.

    These are relative root mean squares, since the largest of many roundings is a matter of chance.
    """
    token_ids = random_ids(2, SHORT_TOKENS)
    theirs = copy.deepcopy(reference).bfloat16()
    coarse = theirs(token_ids).logits.float()
    exact = theirs.float()(token_ids).logits
    blocks = {
        name: {key: weight.bfloat16() for key, weight in weights.items()}
        for name, weights in model.blocks.items()
    }
    ours = Model(model.architecture, blocks).run("decoder", token_ids)
    size = float(exact.norm())
    return float((ours - exact).norm()) / size, float((coarse - exact).norm()) / size


ROUTES: Mapping[str, Callable[[Model, Any], float]] = {
    "whole": whole,
    "steps": steps,
    "device steps": device_steps,
    "batch": batch,
}
"""Of float models; ``long`` is for some, and int8 is the route "steps" of a quantised model."""
