"""Random weights, made in place: as fast to make as to copy, so that no file is needed.

Every matrix is drawn so that a hidden state of size one stays of size one: its entries have the
standard deviation 1 / sqrt(in_features). The same seed and name give the same weights, on the same
kind of device; CPU and GPU draw different ones.

On the host all weights are pieces of one page of random numbers, 64 MiB, entered at an offset that
depends on seed and name: 11 GB take as long as copying them. No measurement of speed can tell the
difference, for caches are far smaller than a page.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from martlet.memory.layout import PartLayout, view_part
from martlet.models.architecture import FIXED, Architecture, TensorSpec
from martlet.quantization.formats import WeightFormat, parse_format
from martlet.quantization.packing import group_unit, padded_shape
from martlet.quantization.scheme import (
    GroupedTensor,
    QuantizedTensor,
    StoredWeight,
    TiledTensor,
    tiled,
)

__all__ = ["RandomSource"]

_PAGE_ELEMENTS = 64 << 20
_FLOAT_PAGE_ELEMENTS = 16 << 20
# Root mean square of integers that are uniform from -127 to 127, of those from 0 to 15 less 8, and
# of those less 7.5, their own mean, which is what zeros are here.
_INT8_DEVIATION = 73.3
_INT4_DEVIATION = 4.637
_INT4_ZERO = 7.5
_CENTERED_INT4_DEVIATION = 4.61
_TABLE_DEVIATION = 0.02  # positions and relative biases


class RandomSource:
    """Where weights of an architecture come from when there is no file.

    ``quantize`` is the name of the format that ``block`` gives matrices in, or "none" for floats
    of ``dtype``; ``fill`` goes by the layout alone. Scales of groups are drawn from a normal
    distribution, of either sign: so the integers' mean, which is not zero, does not show.
    """

    def __init__(
        self,
        architecture: Architecture,
        quantize: str = "int8",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        page_elements: int = _PAGE_ELEMENTS,
    ) -> None:
        specs = architecture.block_specs()
        self._specs: dict[str, dict[str, TensorSpec]] = {
            spec.name: {tensor.name: tensor for tensor in spec.tensors} for spec in specs
        }
        self._format = parse_format(quantize)
        self._dtype = dtype
        self._seed = seed
        # No matrix needs more than its own size; small models are made at once.
        largest = max(math.prod(t.shape) for spec in specs for t in spec.tensors)
        self._page_elements = min(page_elements, largest)
        self._bytes_page: Tensor | None = None
        self._float_pages: dict[torch.dtype, Tensor] = {}

    def block(self, name: str) -> Mapping[str, StoredWeight]:
        """The weights of a block in their plain form, on the host."""
        return {tensor.name: self._plain(name, tensor) for tensor in self._specs[name].values()}

    def fill(self, layout: PartLayout, out: Tensor) -> None:
        """Write a part in the form in which it is computed with.

        Shapes:
            out: (layout.nbytes,) uint8, in main memory or on a GPU
        """
        specs = self._specs[layout.block]
        for name, weight in view_part(layout, out).items():
            if isinstance(weight, TiledTensor):
                self._fill_tiles(layout.block, specs[name], weight)
            else:
                assert isinstance(weight, Tensor), "a part holds tiles and floats"
                self._fill_float(layout.block, specs[name], weight.view(-1))

    def _plain(self, block: str, spec: TensorSpec) -> StoredWeight:
        if self._format is not None and spec.kind != "other":
            return self._integers(block, spec, self._format, torch.device("cpu"))
        weight = torch.empty(spec.shape, dtype=self._dtype)
        self._fill_float(block, spec, weight.view(-1))
        return weight

    def _integers(
        self, block: str, spec: TensorSpec, format: WeightFormat, device: torch.device
    ) -> QuantizedTensor | GroupedTensor:
        rows, columns = spec.shape
        key = self._key(block, spec)
        width = columns if format.bits == 8 else -(-columns // 2)
        data = torch.empty((rows, width), dtype=torch.uint8, device=device)
        self._fill_bytes(key, data.view(-1))
        if format.bits == 8:
            # -127..127: 128 and the integer zero are one another's picture.
            data = data.bitwise_xor_(128).view(torch.int8)
        elif columns % 2:
            data[:, -1] &= 15
        step = self._step(spec, format)
        if format.group_size is None:
            return QuantizedTensor(data, torch.full((rows,), step, device=device))
        row_scale = _power_of_two(step)
        scale = torch.empty(
            (rows, -(-columns // format.group_size)), dtype=torch.float16, device=device
        )
        self._fill_normal(key, step / row_scale, scale.view(-1))
        zero = torch.full_like(scale, _INT4_ZERO) if format.has_zeros else None
        row_scales = torch.full((rows,), row_scale, device=device)
        return GroupedTensor(data, scale, row_scales, torch.Size(spec.shape), format, zero)

    def _fill_tiles(self, block: str, spec: TensorSpec, out: TiledTensor) -> None:
        format = out.format
        unit = group_unit(format) if format.group_size else 1
        rows, columns = spec.shape
        padded = padded_shape(rows, columns, format.bits)
        if (rows, columns) != padded or columns % unit:
            tiles = tiled(self._integers(block, spec, format, out.device))
            out.data.copy_(tiles.data)
            out.scale.copy_(tiles.scale)
            if out.groups is not None and tiles.groups is not None:
                out.groups.copy_(tiles.groups)
            return
        # Tiles only order the bytes, and these have no order.
        key, step = self._key(block, spec), self._step(spec, format)
        self._fill_bytes(key, out.data)
        if out.groups is None:
            out.scale.fill_(step)
            return
        row_scale = _power_of_two(step)
        out.scale.fill_(row_scale)
        self._fill_normal(key, step / row_scale, out.groups)
        if format.has_zeros:
            out.groups.view(-1, 2)[:, 1] = _INT4_ZERO

    def _step(self, spec: TensorSpec, format: WeightFormat) -> float:
        """The scale, or the root mean square of scales, that gives weights their deviation."""
        if format.bits == 8:
            return self._deviation(spec) / _INT8_DEVIATION
        spread = _CENTERED_INT4_DEVIATION if format.has_zeros else _INT4_DEVIATION
        return self._deviation(spec) / spread

    def _fill_bytes(self, key: int, out: Tensor) -> None:
        """Bytes from 1 to 255: int8 with a bias of 128, which -128 is no value of, or nibbles."""
        if out.device.type != "cpu":
            out.random_(1, 256, generator=torch.Generator(out.device).manual_seed(key))
            return
        if self._bytes_page is None:
            page = torch.empty(self._page_elements, dtype=torch.uint8)
            random = torch.Generator().manual_seed(self._seed)
            self._bytes_page = page.random_(1, 256, generator=random)
        for part, values in _pieces(self._bytes_page, key, out):
            part.copy_(values)

    def _fill_float(self, block: str, spec: TensorSpec, out: Tensor) -> None:
        if len(spec.shape) == 1:
            out.fill_(0 if spec.name.endswith("bias") else 1)
            return
        self._fill_normal(self._key(block, spec), self._deviation(spec), out)

    def _fill_normal(self, key: int, deviation: float, out: Tensor) -> None:
        if out.device.type != "cpu":
            random = torch.Generator(out.device).manual_seed(key)
            out.normal_(0, deviation, generator=random)
            return
        if out.dtype not in self._float_pages:
            page = torch.empty(min(self._page_elements, _FLOAT_PAGE_ELEMENTS))
            page.normal_(generator=torch.Generator().manual_seed(self._seed))
            self._float_pages[out.dtype] = page.to(out.dtype)
        for part, values in _pieces(self._float_pages[out.dtype], key, out):
            torch.mul(values, deviation, out=part)

    def _deviation(self, spec: TensorSpec) -> float:
        if spec.kind == "other":
            return _TABLE_DEVIATION
        is_head = spec.kind == "linear" or "lm_head.weight" not in self._specs[FIXED]
        return float(spec.shape[1] ** -0.5) if is_head else 1.0

    def _key(self, block: str, spec: TensorSpec) -> int:
        text = f"{self._seed} {block} {spec.name}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


def _power_of_two(step: float) -> float:
    """The scale of a row whose groups have steps of about this size, as quantising makes it."""
    return float(2.0 ** math.ceil(math.log2(step)))


def _pieces(page: Tensor, key: int, out: Tensor) -> list[tuple[Tensor, Tensor]]:
    """``out`` in pieces, each with what the page has for it from an offset on that ``key`` gives.

    The page is entered elsewhere each time that it is used up.
    """
    pieces, done = [], 0
    while done < out.numel():
        start = (key + 2654435761 * (done + 1)) % page.numel() if done else key % page.numel()
        size = min(out.numel() - done, page.numel() - start)
        pieces.append((out[done : done + size], page[start : start + size]))
        done += size
    return pieces
