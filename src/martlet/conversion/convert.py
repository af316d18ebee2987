"""Turns a foreign checkpoint into a model folder, one tensor in memory at a time."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.checkpoint.writer import StoreContents, StoreWriter, check_destination
from martlet.compression.absmax import QUANTIZED_KINDS
from martlet.compression.nearest import SEARCHED_RANGES, quantize_matrix
from martlet.conversion.detect import open_source
from martlet.conversion.source import Source
from martlet.device.threads import cpu_threads
from martlet.errors import ModelFileError, UsageError
from martlet.models.architecture import BlockSpec, TensorSpec
from martlet.models.config import load_architecture
from martlet.quantization.formats import WeightFormat, parse_format
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

    ``quantize`` is "int8" also where the source was int8 already. ``peak_rss_bytes`` counts the
    pages of the mapped source, which the kernel can take back at any time.
    """

    format_name: str
    family: str
    quantize: str
    num_tensors: int
    nbytes: int
    seconds: float
    path: Path
    peak_rss_bytes: int


def convert(  # noqa: PLR0913  (the options of one command, all by keyword)
    src: Path,
    dst: Path,
    *,
    quantize: str = "none",
    dtype: StoredFloat | None = None,
    tokenizer: Path | None = None,
    num_heads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Read a checkpoint of any known format and write a model folder.

    The format is found out from the files. ``quantize="int8"`` makes linears and embeddings int8;
    a source that is int8 already is taken over unchanged. ``dtype`` changes the type of the
    float tensors, None keeps it. ``tokenizer`` is a vocabulary file or a folder with one, for
    checkpoints that have none beside them; ``num_heads`` is for checkpoints that do not tell.
    On any error, Ctrl-C included, ``dst`` is as before.

    Raises:
        UsageError: an option is not valid, or ``dst`` exists and may not be replaced.
        ModelNotFoundError: nothing is at ``src``.
        ModelFileError: the checkpoint is damaged, hostile or of an unknown kind.
        DiskFullError: the folder does not fit on the disk.
    """
    started = time.perf_counter()
    src, dst = Path(src), Path(dst)
    _check_options(quantize, dtype)
    check_destination(dst.absolute(), overwrite=overwrite)
    tokenizer = None if tokenizer is None else Path(tokenizer)
    source = open_source(src, tokenizer=tokenizer, num_heads=num_heads)
    specs = load_architecture(source.config).block_specs()
    target = _Target(source, parse_format(quantize), None if dtype is None else _FLOATS[dtype])
    contents = target.contents(specs)
    total = sum(tensor.nbytes for block in contents.blocks for tensor in block.tensors)
    done = 0
    num_tensors = 0
    with (
        cpu_threads(1),
        torch.inference_mode(),
        StoreWriter(dst, contents, overwrite=overwrite) as writer,
    ):
        for name, weight in target.weights(specs):
            done += writer.write_weight(name, weight)
            num_tensors += 1
            if progress is not None:
                progress(done, total, name)
    return ConversionReport(
        format_name=source.format_name,
        family=source.family,
        quantize=contents.quantize,
        num_tensors=num_tensors,
        nbytes=writer.size_bytes,
        seconds=time.perf_counter() - started,
        path=dst,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _check_options(quantize: str, dtype: str | None) -> None:
    if quantize != "none" and parse_format(quantize) is None:
        raise UsageError(
            f"quantize is {quantize!r:.40}, expected none, int8, int4, int8-gN, int4-gN or "
            f"int4-gN-asym with N 32, 64 or 128"
        )
    if dtype is not None and dtype not in _FLOATS:
        raise UsageError(f"dtype is {dtype!r}, expected one of {', '.join(_FLOATS)}")


@dataclass(frozen=True)
class _Target:
    """Which form each tensor of a source takes in the model folder."""

    source: Source
    quantize: WeightFormat | None
    dtype: torch.dtype | None

    def contents(self, specs: Sequence[BlockSpec]) -> StoreContents:
        """The model folder to be, numbers aside."""
        source, tokenizer = self.source, self.source.tokenizer
        return StoreContents(
            blocks=tuple(self._plan(spec) for spec in specs),
            config=source.config,
            family=source.family,
            tokenizer=(tokenizer.kind, tokenizer.files) if tokenizer else None,
            generation=source.generation,
        )

    def _plan(self, block: BlockSpec) -> PlannedBlock:
        weights = (self._planned(block.prefix + spec.name, spec) for spec in block.tensors)
        return PlannedBlock(block.name, block.prefix, tuple(weights))

    def weights(self, specs: Sequence[BlockSpec]) -> Iterator[tuple[str, StoredWeight]]:
        """Every tensor in the order of the file, one at a time."""
        for block in specs:
            for spec in block.tensors:
                name = block.prefix + spec.name
                yield name, self._weight(name, spec)

    def _planned(self, name: str, spec: TensorSpec) -> PlannedWeight:
        stored = self.source.stored_as(name)
        form = stored.form
        if isinstance(form, WeightFormat):
            return PlannedWeight(name, spec.shape, form, stored.scale_dtype)
        if not form.is_floating_point:
            raise ModelFileError(f"{name} is {form}, expected a float type")
        if self.quantize is not None and spec.kind in QUANTIZED_KINDS:
            return PlannedWeight(name, spec.shape, self.quantize)
        kept = torch.float32 if form == torch.float64 else form
        return PlannedWeight(name, spec.shape, self.dtype or kept)

    def _weight(self, name: str, spec: TensorSpec) -> StoredWeight:
        weight = self.source.tensor(name)
        if tuple(weight.shape) != spec.shape:
            raise ModelFileError(
                f"{name} has shape {list(weight.shape)}, the configuration asks for "
                f"{list(spec.shape)}"
            )
        if not isinstance(weight, Tensor):
            return weight
        form = self._planned(name, spec).form
        if isinstance(form, WeightFormat):
            return quantize_matrix(weight, form, name, candidates=SEARCHED_RANGES)
        return _cast(weight, form, name)


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise ModelFileError(
            f"{name}: a weight does not fit into {dtype}, or is not finite; keep {tensor.dtype}"
        )
    return cast
