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
from martlet.quantization.packing import pack_tiles, padded_shape
from martlet.quantization.scheme import QuantizedTensor, StoredWeight, TiledTensor

__all__ = ["RandomSource"]

_PAGE_ELEMENTS = 64 << 20
_FLOAT_PAGE_ELEMENTS = 16 << 20
# Standard deviation of integers that are uniform from -127 to 127.
_INT8_DEVIATION = 73.3
_TABLE_DEVIATION = 0.02  # positions and relative biases


class RandomSource:
    """Where weights of an architecture come from when there is no file.

    ``quantize`` is "int8" for int8 matrices, anything else for float ones, which ``block`` gives
    in ``dtype``; ``fill`` goes by the layout alone.
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
        self._quantize = quantize
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
                self._fill_tiles(layout.block, specs[name], weight.data)
                weight.scale.fill_(self._deviation(specs[name]) / _INT8_DEVIATION)
            else:
                assert isinstance(weight, Tensor), "a part holds tiles and floats"
                self._fill_float(layout.block, specs[name], weight.view(-1))

    def _plain(self, block: str, spec: TensorSpec) -> StoredWeight:
        if self._quantize == "int8" and spec.kind != "other":
            scale = torch.full(spec.shape[:1], self._deviation(spec) / _INT8_DEVIATION)
            return QuantizedTensor(self._int8(block, spec, torch.device("cpu")), scale)
        weight = torch.empty(spec.shape, dtype=self._dtype)
        self._fill_float(block, spec, weight.view(-1))
        return weight

    def _int8(self, block: str, spec: TensorSpec, device: torch.device) -> Tensor:
        data = torch.empty(spec.shape, dtype=torch.uint8, device=device)
        self._fill_bytes(self._key(block, spec), data.view(-1))
        # -127..127: 128 and the integer zero are one another's picture.
        return data.bitwise_xor_(128).view(torch.int8)

    def _fill_tiles(self, block: str, spec: TensorSpec, out: Tensor) -> None:
        if spec.shape == padded_shape(*spec.shape):
            # Tiles only order the bytes, and these have no order.
            self._fill_bytes(self._key(block, spec), out)
        else:
            pack_tiles(self._int8(block, spec, out.device), out)

    def _fill_bytes(self, key: int, out: Tensor) -> None:
        """Bytes from 1 to 255: int8 with a bias of 128, which -128 is no value of."""
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
        deviation, key = self._deviation(spec), self._key(block, spec)
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
