"""Pieces of weights on their way to the device that quantises and tiles them.

A GPU would wait while the processor reads pages of a file into page-locked memory, and the
processor while the GPU computes. So a thread reads ahead and copies on a stream of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from martlet.device.host import StagingRing
from martlet.quantization.scheme import QuantizedTensor, StoredWeight

__all__ = ["Uploads"]

_AHEAD = 2  # pieces that are read while one is computed with


class Uploads:
    """Brings pieces to a device, in order; on a processor they are there already."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
            self._ring = StagingRing()
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pieces(self, pieces: Iterable[StoredWeight]) -> Iterator[StoredWeight]:
        """The same weights on the device, valid for what is launched on the current stream."""
        if self._device.type != "cuda":
            yield from pieces
            return
        compute = torch.cuda.current_stream(self._device)
        pending: deque[Future[tuple[StoredWeight, torch.cuda.Event]]] = deque()
        try:
            for piece in pieces:
                pending.append(self._thread.submit(self._upload, piece, compute))
                if len(pending) > _AHEAD:
                    yield self._arrived(pending.popleft(), compute)
            while pending:
                yield self._arrived(pending.popleft(), compute)
        finally:
            # Given up half-way: nothing may still be copied into memory that goes back.
            for future in pending:
                future.cancel() or future.exception()
            self._copies.synchronize()

    def _arrived(
        self, future: Future[tuple[StoredWeight, torch.cuda.Event]], compute: torch.cuda.Stream
    ) -> StoredWeight:
        weight, event = future.result()
        compute.wait_event(event)
        return weight

    def _upload(
        self, weight: StoredWeight, compute: torch.cuda.Stream
    ) -> tuple[StoredWeight, torch.cuda.Event]:
        """Runs in the thread."""

        def move(tensor: Tensor) -> Tensor:
            # Made on the stream that computes with it and frees it; that this memory may still be
            # read there by what was launched before is why the copy waits for that stream.
            with torch.cuda.stream(compute):
                target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
            self._copies.wait_stream(compute)
            # The mode is one of a thread; the ring may have been made in it.
            with torch.cuda.stream(self._copies), torch.inference_mode():
                self._ring.copy(_bytes_of(tensor.contiguous()), _bytes_of(target))
            return target

        moved = _with_tensors(weight, move)
        event: torch.cuda.Event = self._copies.record_event()
        return moved, event


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _with_tensors(weight: StoredWeight, move: Callable[[Tensor], Tensor]) -> StoredWeight:
    if isinstance(weight, Tensor):
        return move(weight)
    if isinstance(weight, QuantizedTensor):
        return QuantizedTensor(move(weight.data), move(weight.scale))
    zero = None if weight.zero is None else move(weight.zero)
    data, scale, row_scale = move(weight.data), move(weight.scale), move(weight.row_scale)
    return replace(weight, data=data, scale=scale, row_scale=row_scale, zero=zero)
