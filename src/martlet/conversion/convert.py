"""Turns a foreign checkpoint into a model folder, one tensor in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.checkpoint.writer import StoreContents, StoreWriter, check_destination
from martlet.compression.absmax import QUANTIZED_KINDS
from martlet.compression.nearest import SEARCHED_RANGES, quantize_matrix
from martlet.compression.recipe import Recipe, bits_per_weight
from martlet.conversion.detect import open_source
from martlet.conversion.source import Source
from martlet.device.probe import peak_rss_bytes
from martlet.device.threads import cpu_threads
from martlet.errors import ModelFileError, UsageError
from martlet.models.architecture import BlockSpec, TensorSpec
from martlet.models.config import load_architecture
from martlet.quantization.formats import WeightFormat, named_format
from martlet.quantization.scheme import StoredWeight

__all__ = ["ConversionReport", "Progress", "StoredFloat", "convert"]

StoredFloat = Literal["float32", "float16", "bfloat16"]
Progress = Callable[[int, int, str], None]
"""Called with (bytes written, bytes in all, name of the tensor) after each tensor."""

_FLOATS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    ``quantize`` names the narrowest integers, also where the source had them already.
    ``bits_per_weight`` counts scales, and floats as they are. ``peak_rss_bytes`` counts the
    pages of the mapped source, which the kernel can take back at any time.
    """

    format_name: str
    family: str
    quantize: str
    bits_per_weight: float
    num_tensors: int
    nbytes: int
    seconds: float
    path: Path
    peak_rss_bytes: int


def convert(  # noqa: PLR0913  (the options of one command, all by keyword)
    src: Path,
    dst: Path,
    *,
    quantize: str | Recipe | None = None,
    dtype: StoredFloat | None = None,
    tokenizer: Path | None = None,
    num_heads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Read a checkpoint of any known format and write a model folder.

    The format of the checkpoint is found out from its files. ``quantize`` names the format of
    linears and embeddings ("int8", "int4", "int4-g64-asym", ...) or is a recipe; they are rounded
    to nearest, the ranges of groups searched. "none" makes floats of integers; None, the default,
    takes everything over as it is. What the source has as integers is taken over unchanged too
    where the format that is asked for has no fewer bytes.
    ``dtype`` changes the type of the float tensors, None keeps it (integers become float32).
    ``tokenizer`` is a vocabulary file or a folder with one, for checkpoints that have none beside
    them; ``num_heads`` is for checkpoints that do not tell.
    On any error, Ctrl-C included, ``dst`` is as before.

    Raises:
        UsageError: an option is not valid, or ``dst`` exists and may not be replaced.
        ModelNotFoundError: nothing is at ``src``.
        ModelFileError: the checkpoint is damaged, hostile or of an unknown kind.
        DiskFullError: the folder does not fit on the disk.
    """
    started = time.perf_counter()
    src, dst = Path(src), Path(dst)
    recipe = _parse_recipe(quantize)
    if dtype is not None and dtype not in _FLOATS:
        raise UsageError(f"dtype is {dtype!r:.40}, expected one of {', '.join(_FLOATS)}")
    check_destination(dst.absolute(), overwrite=overwrite)
    tokenizer = None if tokenizer is None else Path(tokenizer)
    source = open_source(src, tokenizer=tokenizer, num_heads=num_heads)
    specs = load_architecture(source.config).block_specs()
    if recipe is not None:
        recipe.require_matches(specs)
    floats = None if dtype is None else _FLOATS[dtype]
    target = _Target(source, specs, recipe, quantize == "none", floats)
    contents = target.contents()
    total = sum(weight.nbytes for weight in contents.weights)
    done = 0
    num_tensors = 0
    with (
        cpu_threads(1),
        torch.inference_mode(),
        StoreWriter(dst, contents, overwrite=overwrite) as writer,
    ):
        for name, weight in target.weights(contents):
            done += writer.write_weight(name, weight)
            num_tensors += 1
            if progress is not None:
                progress(done, total, name)
    return ConversionReport(
        format_name=source.format_name,
        family=source.family,
        quantize=contents.quantize,
        bits_per_weight=bits_per_weight(contents.weights),
        num_tensors=num_tensors,
        nbytes=writer.size_bytes,
        seconds=time.perf_counter() - started,
        path=dst,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _parse_recipe(quantize: str | Recipe | None) -> Recipe | None:
    if quantize is None or isinstance(quantize, Recipe):
        return quantize
    return None if quantize == "none" else Recipe(named_format(quantize, besides="none, "))


@dataclass(frozen=True)
class _Target:
    """Which form each tensor of a source takes in the model folder.

    ``recipe`` None leaves matrices as they are; ``to_floats`` makes floats of integers.
    """

    source: Source
    specs: Sequence[BlockSpec]
    recipe: Recipe | None
    to_floats: bool
    dtype: torch.dtype | None

    def contents(self) -> StoreContents:
        """The model folder to be, numbers aside."""
        source, tokenizer = self.source, self.source.tokenizer
        blocks = tuple(self._plan(block) for block in self.specs)
        return StoreContents(
            blocks=blocks,
            config=source.config,
            family=source.family,
            tokenizer=(tokenizer.kind, tokenizer.files) if tokenizer else None,
            generation=source.generation,
            compression=self._compression(blocks),
        )

    def _plan(self, block: BlockSpec) -> PlannedBlock:
        weights = (self._planned(block, spec) for spec in block.tensors)
        return PlannedBlock(block.name, block.prefix, tuple(weights))

    def weights(self, contents: StoreContents) -> Iterator[tuple[str, StoredWeight]]:
        """Every tensor in the order of the file, one at a time."""
        for planned in contents.weights:
            yield planned.name, self._weight(planned)

    def _planned(self, block: BlockSpec, spec: TensorSpec) -> PlannedWeight:
        name = block.prefix + spec.name
        stored = self.source.stored_as(name)
        asked = self.recipe and self.recipe.format_of(name, spec, block, self.specs)
        if isinstance(stored.form, WeightFormat):
            if spec.kind not in QUANTIZED_KINDS:
                raise ModelFileError(f"{name} is {stored.form.name}, expected a float type")
            if self.to_floats:
                return PlannedWeight(name, spec.shape, self.dtype or torch.float32)
            # What was rounded away does not come back, so nothing is made wider than it came.
            if asked and asked.nbytes(*spec.shape) < stored.form.nbytes(*spec.shape):
                return PlannedWeight(name, spec.shape, asked)
            return PlannedWeight(name, spec.shape, stored.form, stored.scale_dtype)
        if not stored.form.is_floating_point:
            raise ModelFileError(f"{name} is {stored.form}, expected a float type")
        kept = torch.float32 if stored.form == torch.float64 else stored.form
        return PlannedWeight(name, spec.shape, asked or self.dtype or kept)

    def _weight(self, planned: PlannedWeight) -> StoredWeight:
        name = planned.name
        weight = self.source.tensor(name)
        if tuple(weight.shape) != planned.shape:
            raise ModelFileError(
                f"{name} has shape {list(weight.shape)}, the configuration asks for "
                f"{list(planned.shape)}"
            )
        if not isinstance(weight, Tensor):
            if weight.format == planned.form:
                return weight
            weight = weight.dequantize()
        if isinstance(planned.form, WeightFormat):
            return quantize_matrix(weight, planned.form, name, candidates=SEARCHED_RANGES)
        return _cast(weight, planned.form, name)

    def _compression(self, blocks: Sequence[PlannedBlock]) -> dict[str, Any]:
        """How the integers of the folder come to be: its own account, or that of the source."""
        before = self.source.compression
        is_rounded = any(
            weight.format is not None and weight.form != self.source.stored_as(weight.name).form
            for block in blocks
            for weight in block.weights
        )
        if self.recipe is not None and is_rounded:
            account = {"method": "nearest", "recipe": self.recipe.to_json()}
            return {**account, "from": before} if before else account
        return {} if self.to_floats else before


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise ModelFileError(
            f"{name}: a weight does not fit into {dtype}, or is not finite; keep {tensor.dtype}"
        )
    return cast
