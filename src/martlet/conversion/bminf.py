"""checkpoint.pt of BMInf 0.x and 1.0: int8 weights with fp16 scales, taken over unchanged.

Not a torch file. One recursive record, little-endian:

    record    u32 number of tensors, u32 number of parts, the tensors, the parts
    tensor    u32 + name in UTF-8, u8 number of axes, u32 each axis,
              u32 number of bytes, u8 type (0 int8, 1 float16, 2 float32), the bytes
    part      u32 + name in UTF-8, its record
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from martlet.checkpoint.mapped import MappedFile
from martlet.checkpoint.safetensors import MAX_ENTRIES, check_tensor_name
from martlet.conversion.bminf_names import LAYOUTS, Layout, Recipe
from martlet.conversion.settings import Gpt2Sizes, T5Sizes, gpt2_config, t5_config, t5_family
from martlet.conversion.source import StoredForm, TokenizerFiles
from martlet.conversion.table import StoredTensor, TensorTable
from martlet.conversion.tokenizer_files import find_tokenizer
from martlet.errors import ModelFileError
from martlet.quantization.formats import INT8
from martlet.quantization.scheme import QuantizedTensor, StoredWeight

__all__ = ["BMInfSource", "parse_records"]

_DTYPES = {0: torch.int8, 1: torch.float16, 2: torch.float32}
_MAX_DEPTH = 8
_MAX_AXES = 8
_MAX_NAME_BYTES = 512


def parse_records(path: Path) -> TensorTable:
    """The tensors of a BMInf file by their dotted paths; every length is checked before its use.

    Raises:
        ModelFileError: the file is truncated, malformed or something else.
    """
    reader = _Reader(path)
    tensors: dict[str, StoredTensor] = {}
    reader.record("", 0, tensors)
    if reader.position != reader.file.size_bytes:
        raise reader.fail("ends here, but the file goes on")
    if not tensors:
        raise reader.fail("holds no tensor")
    return TensorTable(path, tensors)


class _Reader:
    """Walks through the file once; ``position`` is the next byte to read."""

    def __init__(self, path: Path) -> None:
        self.file = MappedFile(path)
        self.position = 0
        self._num_parts = 0

    def fail(self, problem: str) -> ModelFileError:
        return ModelFileError(
            f"{self.file.path}: byte {self.position:,} of {self.file.size_bytes:,}: {problem}; "
            f"it is truncated, damaged or not a BMInf checkpoint"
        )

    def record(self, prefix: str, depth: int, tensors: dict[str, StoredTensor]) -> None:
        if depth > _MAX_DEPTH:
            raise self.fail(f"parts nested more than {_MAX_DEPTH} deep")
        num_tensors, num_parts = self._number(4), self._number(4)
        self._num_parts += num_parts
        if len(tensors) + num_tensors > MAX_ENTRIES or self._num_parts > MAX_ENTRIES:
            raise self.fail(f"{num_tensors:,} tensors and {num_parts:,} parts are too many")
        for _ in range(num_tensors):
            name = prefix + self._name()
            if name in tensors:
                raise self.fail(f"{name} occurs twice")
            tensors[name] = self._tensor()
        for _ in range(num_parts):
            self.record(f"{prefix}{self._name()}.", depth + 1, tensors)

    def _tensor(self) -> StoredTensor:
        num_axes = self._number(1)
        if num_axes > _MAX_AXES:
            raise self.fail(f"a tensor of {num_axes} axes")
        shape = tuple(self._number(4) for _ in range(num_axes))
        nbytes, code = self._number(4), self._number(1)
        dtype = _DTYPES.get(code)
        if dtype is None:
            raise self.fail(f"element type {code} is unknown")
        if 0 in shape or math.prod(shape) * dtype.itemsize != nbytes:
            raise self.fail(f"{dtype} {list(shape)} does not make {nbytes:,} bytes")
        return StoredTensor(self.file, self._skip(nbytes), dtype, shape)

    def _name(self) -> str:
        length = self._number(4)
        if not 0 < length <= _MAX_NAME_BYTES:
            raise self.fail(f"a name of {length:,} bytes")
        try:
            name = self.file.read(self._skip(length), length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a name that is not UTF-8") from None
        if problem := check_tensor_name(name):
            raise self.fail(problem)
        return name

    def _number(self, nbytes: int) -> int:
        return int.from_bytes(self.file.read(self._skip(nbytes), nbytes), "little")

    def _skip(self, nbytes: int) -> int:
        """The position before the next ``nbytes`` bytes, which are there."""
        start = self.position
        if nbytes > self.file.size_bytes - start:
            raise self.fail(f"{nbytes:,} more bytes are expected")
        self.position = start + nbytes
        return start


class BMInfSource:
    """A checkpoint.pt of BMInf, of either generation: CPM-1, CPM-2, CPM-2.1 or EVA.

    Raises:
        ModelFileError: the file is not sound, or has the layout of neither generation.
        UsageError: the number of heads must be given.
    """

    def __init__(
        self, path: Path, tokenizer: Path | None = None, num_heads: int | None = None
    ) -> None:
        self._table = parse_records(path)
        self._layout = _find_layout(self._table)
        self.format_name = f"bminf-v{self._layout.version}"
        self.generation: dict[str, Any] = {}
        self.compression: dict[str, Any] = {}
        if self._layout.model_type == "gpt2":
            self.family = "cpm1"
            self.config = gpt2_config(path, _gpt2_sizes(self._table, self._layout), num_heads)
        else:
            sizes = _t5_sizes(self._table, self._layout)
            self.family = t5_family(sizes.vocab_size, has_roles=False)
            # BMInf knew EVA 1.0 only, which does not scale its attention scores.
            self.config = t5_config(path, sizes, self.family, attn_scale=False)
        self.tokenizer: TokenizerFiles | None = find_tokenizer(
            self.family, self.config["vocab_size"], [path.parent], tokenizer
        )

    def stored_as(self, name: str) -> StoredForm:
        """The float type of a tensor, or int8 with the type of its scales."""
        recipe, layer = self._recipe(name)
        record = recipe.names[0].format(layer)
        dtype = self._table.find(record).dtype
        if dtype != torch.int8:
            return StoredForm(dtype)
        return StoredForm(INT8, self._table.find(self._layout.scale_name(record)).dtype)

    def tensor(self, name: str) -> StoredWeight:
        """The tensor of that name; int8 ones with their scales, as they are."""
        self._table.forget()
        recipe, layer = self._recipe(name)
        records = [record.format(layer) for record in recipe.names]
        data = self._cut(name, records, recipe, layer)
        if data.dtype != torch.int8:
            return data
        scales = [self._layout.scale_name(record) for record in records]
        vector = Recipe((), recipe.pick, recipe.by_layer, vector=True)
        scale = self._cut(name, scales, vector, layer)
        if data.ndim != 2 or scale.shape != data.shape[:1] or not scale.is_floating_point():
            raise ModelFileError(
                f"{self._table.path}: {name}: int8 {list(data.shape)} has scales "
                f"{scale.dtype} {list(scale.shape)}, expected one float for each row"
            )
        return QuantizedTensor(data, scale)

    def _recipe(self, name: str) -> tuple[Recipe, int]:
        found = self._layout.recipe(name)
        if found is None:
            raise ModelFileError(f"{self._table.path}: has nothing that could be {name}")
        return found

    def _cut(self, name: str, records: list[str], recipe: Recipe, layer: int) -> Tensor:
        pieces = []
        for record in records:
            tensor = self._table.find(record).load()
            for index in (layer, *recipe.pick) if recipe.by_layer else recipe.pick:
                if tensor.ndim < 2 or index >= tensor.shape[0]:
                    raise ModelFileError(f"{self._table.path}: {record} is too small for {name}")
                tensor = tensor[index]
            if not recipe.vector and tensor.ndim < 2:
                raise ModelFileError(f"{self._table.path}: {record} is not a matrix")
            tensor = tensor.reshape(-1) if recipe.vector else tensor.reshape(-1, tensor.shape[-1])
            pieces.append(tensor.T if recipe.turned else tensor)
        if any(p.dtype != pieces[0].dtype or p.shape != pieces[0].shape for p in pieces):
            raise ModelFileError(f"{self._table.path}: the parts of {name} do not fit together")
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _find_layout(table: TensorTable) -> Layout:
    for layout in LAYOUTS:
        needed = (layout.embedding, layout.positions, layout.attention_out, layout.feed_forward)
        if all(name in table for name in needed):
            return layout
    raise ModelFileError(
        f"{table.path}: is a BMInf file, but its tensors are those of no known model"
    )


def _gpt2_sizes(table: TensorTable, layout: Layout) -> Gpt2Sizes:
    vocab_size, hidden_size = table.shape(layout.embedding, 2)
    return Gpt2Sizes(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_positions=table.shape(layout.positions, 2)[0],
        num_layers=table.count(layout.norms[0]),
        feed_forward_size=table.shape(layout.feed_forward, 2)[0],
    )


def _t5_sizes(table: TensorTable, layout: Layout) -> T5Sizes:
    vocab_size, hidden_size = table.shape(layout.embedding, 2)
    positions = table.shape(layout.positions, 2)
    num_buckets, num_heads = positions if layout.version == 0 else positions[::-1]
    return T5Sizes(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_encoder_layers=table.count(layout.norms[0]),
        num_decoder_layers=table.count(layout.norms[1]),
        num_heads=num_heads,
        num_buckets=num_buckets,
        attention_size=table.shape(layout.attention_out, 2)[1],
        feed_forward_size=table.shape(layout.feed_forward, 2)[0],
    )
