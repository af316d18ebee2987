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

from martlet.checkpoint.layout import PlannedBlock, PlannedTensor
from martlet.checkpoint.store import SCALE_SUFFIX
from martlet.checkpoint.writer import StoreContents, StoreWriter, check_destination
from martlet.compression.absmax import QUANTIZED_KINDS, quantize_rows
from martlet.conversion.detect import open_source
from martlet.conversion.source import Source
from martlet.device.threads import cpu_threads
from martlet.errors import ModelFileError, UsageError
from martlet.models.architecture import BlockSpec, TensorSpec
from martlet.models.config import load_architecture
from martlet.quantization.scheme import QuantizedTensor, StoredWeight

__all__ = ["ConversionReport", "Progress", "Quantize", "StoredFloat", "convert"]

Quantize = Literal["none", "int8"]
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
    quantize: Quantize = "none",
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
    target = _Target(source, quantize == "int8", None if dtype is None else _FLOATS[dtype])
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
            done += _write(writer, name, weight)
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
    if quantize not in ("none", "int8"):
        raise UsageError(f"quantize is {quantize!r}, expected none or int8")
    if dtype is not None and dtype not in _FLOATS:
        raise UsageError(f"dtype is {dtype!r}, expected one of {', '.join(_FLOATS)}")


@dataclass(frozen=True)
class _Target:
    """Which form each tensor of a source takes in the model folder."""

    source: Source
    to_int8: bool
    dtype: torch.dtype | None

    def contents(self, specs: Sequence[BlockSpec]) -> StoreContents:
        """The model folder to be, numbers aside."""
        source, tokenizer = self.source, self.source.tokenizer
        blocks = tuple(self._plan(spec) for spec in specs)
        return StoreContents(
            blocks=blocks,
            config=source.config,
            family=source.family,
            quantize="int8" if any(_has_int8(block) for block in blocks) else "none",
            tokenizer=(tokenizer.kind, tokenizer.files) if tokenizer else None,
            generation=source.generation,
        )

    def _plan(self, block: BlockSpec) -> PlannedBlock:
        tensors: list[PlannedTensor] = []
        for spec in block.tensors:
            name = block.prefix + spec.name
            dtype, scale_dtype = self._stored_as(name, spec)
            tensors.append(PlannedTensor(name, dtype, spec.shape))
            if scale_dtype is not None:
                tensors.append(PlannedTensor(name + SCALE_SUFFIX, scale_dtype, spec.shape[:1]))
        return PlannedBlock(block.name, block.prefix, tuple(tensors))

    def weights(self, specs: Sequence[BlockSpec]) -> Iterator[tuple[str, StoredWeight]]:
        """Every tensor in the order of the file, one at a time."""
        for block in specs:
            for spec in block.tensors:
                name = block.prefix + spec.name
                yield name, self._weight(name, spec)

    def _stored_as(self, name: str, spec: TensorSpec) -> tuple[torch.dtype, torch.dtype | None]:
        dtype, scale_dtype = self.source.stored_as(name)
        if scale_dtype is not None:
            return dtype, scale_dtype
        if not dtype.is_floating_point:
            raise ModelFileError(f"{name} is {dtype}, expected a float type")
        if self.to_int8 and spec.kind in QUANTIZED_KINDS:
            return torch.int8, torch.float32
        return self.dtype or (torch.float32 if dtype == torch.float64 else dtype), None

    def _weight(self, name: str, spec: TensorSpec) -> StoredWeight:
        weight = self.source.tensor(name)
        if tuple(weight.shape) != spec.shape:
            raise ModelFileError(
                f"{name} has shape {list(weight.shape)}, the configuration asks for "
                f"{list(spec.shape)}"
            )
        dtype, scale_dtype = self._stored_as(name, spec)
        if isinstance(weight, QuantizedTensor):
            return weight
        assert isinstance(weight, Tensor), "sources hold no groups yet"
        if scale_dtype is not None:
            return quantize_rows(weight, name)
        return _cast(weight, dtype, name)


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise ModelFileError(
            f"{name}: a weight does not fit into {dtype}, or is not finite; keep {tensor.dtype}"
        )
    return cast


def _write(writer: StoreWriter, name: str, weight: StoredWeight) -> int:
    if isinstance(weight, QuantizedTensor):
        writer.write(name, weight.data)
        writer.write(name + SCALE_SUFFIX, weight.scale)
    else:
        assert isinstance(weight, Tensor), "sources hold no groups yet"
        writer.write(name, weight)
    return weight.nbytes


def _has_int8(block: PlannedBlock) -> bool:
    return any(tensor.dtype == torch.int8 for tensor in block.tensors)
