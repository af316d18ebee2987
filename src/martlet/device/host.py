"""Main memory that a GPU copies from at full speed.

The link reaches its rate only from memory that the system may not move. Registering ordinary
memory that has been touched takes 0.07 s a GiB; allocating page-locked memory takes ten times as
long, so that is done for nothing but a small ring.
"""

from __future__ import annotations

import contextlib
import logging
import weakref

import torch
from torch import Tensor

__all__ = ["HostBuffer", "StagingRing"]

_log = logging.getLogger(__name__)

_RING_BYTES = 16 << 20  # a copy of this size reaches 95 % of the link's rate


class HostBuffer:
    """Bytes in main memory, page-locked where the system allows it.

    ``data`` is (nbytes,) uint8. ``is_locked`` tells whether copies from it run by themselves.
    """

    def __init__(self, nbytes: int) -> None:
        self.data = torch.empty(nbytes, dtype=torch.uint8)
        self.is_locked = False

    def lock(self) -> bool:
        """Register the memory, once it has been filled; whether that worked.

        It stays registered until this object goes.
        """
        if not self.is_locked and self.data.numel():
            address = self.data.data_ptr()
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            if int(runtime.cudaHostRegister(address, self.data.numel(), 0)) == 0:
                self.is_locked = True
                weakref.finalize(self, _unregister, address, self.data)
            else:
                _forget_error()
        return self.is_locked


def _forget_error() -> None:
    """Take back what the CUDA runtime remembers of a refusal.

    torch asks for the last error after each launch of a kernel, and would take it for its own.
    """
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")


def _unregister(address: int, data: Tensor) -> None:
    # ``data`` is held until here: memory must not be freed while it is registered.
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


class StagingRing:
    """Copies ordinary memory to a GPU through two small page-locked pieces.

    The processor fills one piece while the link empties the other. Where not even that much can
    be locked, copies are left to the driver, which is several times slower.
    """

    def __init__(self, num_pieces: int = 2) -> None:
        self._pieces: list[Tensor] = []
        self._done: list[torch.cuda.Event] = []
        self._next = 0
        try:
            for _ in range(num_pieces):
                self._pieces.append(torch.empty(_RING_BYTES, dtype=torch.uint8, pin_memory=True))
                self._done.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
        except RuntimeError:
            self._pieces.clear()
            _log.warning(
                "no memory can be page-locked: copies to the GPU will be several times slower "
                "(the limit is `ulimit -l`, or the container's)"
            )

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Start to copy on the current stream; ``source`` may change once this returns.

        Shapes:
            source: (nbytes,) uint8 in main memory
            target: (nbytes,) uint8 on the device
        """
        if not self._pieces:
            target.copy_(source)
            return
        for start in range(0, source.numel(), _RING_BYTES):
            stop = min(start + _RING_BYTES, source.numel())
            piece, done = self._pieces[self._next], self._done[self._next]
            self._next = (self._next + 1) % len(self._pieces)
            done.synchronize()
            piece[: stop - start].copy_(source[start:stop])
            target[start:stop].copy_(piece[: stop - start], non_blocking=True)
            done.record()
