"""Random weights for any architecture, and the plainest driver of its passes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from martlet.checkpoint.store import open_store
from martlet.compression.requantize import in_formats
from martlet.conversion.convert import convert
from martlet.layers.kv_cache import KVCache
from martlet.models.architecture import FIXED, Architecture, Stack, Weights
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT8
from martlet.quantization.kv_form import KVForm


@dataclass(frozen=True)
class Model:
    """An architecture with its weights by block name."""

    architecture: Architecture
    blocks: dict[str, Weights]

    def run(
        self,
        stack: Stack,
        token_ids: Tensor,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
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
        like = next(iter(self.blocks["decoder.0"].values()))
        assert isinstance(like, Tensor)  # a norm comes first
        return self.architecture.new_cache(
            num_slots, max_tokens, like, max_encoder_tokens, kv_cache
        )

    def encode(self, token_ids: Tensor, cache: KVCache, lengths: Tensor | None = None) -> Tensor:
        hidden = self.run("encoder", token_ids, None, lengths)
        whole = torch.full((token_ids.shape[0],), token_ids.shape[1])
        cache.set_encoder_output(hidden, whole if lengths is None else lengths)
        return hidden


def _random_model(
    architecture: Architecture, *, quantize: bool = False, dtype: torch.dtype = torch.float32
) -> Model:
    generator = torch.Generator().manual_seed(20)
    blocks: dict[str, Weights] = {}
    for spec in architecture.block_specs():
        weights = {}
        for tensor in spec.tensors:
            value = torch.randn(tensor.shape, generator=generator)
            if tensor.kind == "linear":
                value = value * 1.2 * tensor.shape[1] ** -0.5
            elif tensor.name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
                value = 1 + 0.1 * value
            weights[tensor.name] = value.to(dtype)
        formats = {t.name: None if t.kind == "other" else INT8 for t in spec.tensors}
        cpu = torch.device("cpu")
        blocks[spec.name] = in_formats(weights, formats, cpu) if quantize else weights
    return Model(architecture, blocks)


@pytest.fixture
def random_model() -> Callable[..., Model]:
    """Makes a model with seeded weights, scaled so that logits are far from flat."""
    return _random_model


@pytest.fixture
def convert_model(tmp_path: Path) -> Callable[..., Model]:
    """Takes a foreign checkpoint through our converter and opens what came out."""

    def convert_and_open(source: Path, quantize: str = "none") -> Model:
        folder = tmp_path / f"converted-{quantize}"
        convert(source, folder, quantize=quantize)
        store = open_store(folder)
        architecture = load_architecture(store.config)
        blocks = {spec.name: store.block(spec.name) for spec in architecture.block_specs()}
        return Model(architecture, blocks)

    return convert_and_open


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class DecoderOracle:
    """What is asked of every decoder-only architecture beside transformers' own."""

    # float32 on both sides, the order of the sums differs: 1.2e-6 of the largest logit was
    # measured.
    tolerance = 1e-5

    def token_ids(self, *shape: int) -> Tensor:
        return torch.randint(0, 101, shape, generator=torch.Generator().manual_seed(11))

    def assert_close(self, ours: Tensor, theirs: Tensor) -> None:
        assert theirs.std() > 0.5  # flat logits would let any mistake pass
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= self.tolerance * theirs.abs().max()

    def assert_whole_and_in_steps(self, model: Model, reference: Callable[..., Any]) -> None:
        token_ids = self.token_ids(2, 23)
        theirs = reference(token_ids).logits
        self.assert_close(model.run("decoder", token_ids), theirs)
        cache = model.new_cache(2, 23)
        parts = token_ids.split([6] + [1] * 17, dim=1)
        stepped = torch.cat([model.run("decoder", part, cache) for part in parts], dim=1)
        self.assert_close(stepped, theirs)

    def assert_rows_are_as_alone(self, model: Model, reference: Callable[..., Any]) -> None:
        lengths = [17, 4, 30]
        token_ids = self.token_ids(3, 30)
        cache = model.new_cache(3, 40)
        ours = model.run("decoder", token_ids, cache, torch.tensor(lengths))
        following = self.token_ids(3, 2)
        after = model.run("decoder", following, cache)
        for row, length in enumerate(lengths):
            alone = torch.cat([token_ids[row : row + 1, :length], following[row : row + 1]], dim=1)
            theirs = reference(alone).logits[0]
            self.assert_close(ours[row, :length], theirs[:length])
            self.assert_close(after[row], theirs[length:])

    def assert_int8_is_near(self, model: Model, reference: Callable[..., Any]) -> None:
        token_ids = self.token_ids(1, 40)
        theirs = reference(token_ids).logits
        cache = model.new_cache(1, 40)
        parts = token_ids.split(1, dim=1)
        stepped = torch.cat([model.run("decoder", part, cache) for part in parts], dim=1)
        for ours in (model.run("decoder", token_ids), stepped):
            # Rounding to int8 puts a noise of 0.7 % on every weight; it adds up over three layers.
            assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.05


@pytest.fixture(scope="session")
def oracle() -> DecoderOracle:
    return DecoderOracle()
