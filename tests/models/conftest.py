"""Random weights for any architecture, and what is asked of all of them beside transformers' own.

The modules beside the tests are no package: they import each other by name, as a script under
benchmarks/ does that measures the same.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from martlet.compression.requantize import in_formats
from martlet.models.architecture import Architecture, Weights
from martlet.quantization.formats import INT8

sys.path.insert(0, str(Path(__file__).parent))

from oracle_routes import Model, open_converted


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
        return open_converted(source, tmp_path / f"converted-{quantize}", quantize)

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
