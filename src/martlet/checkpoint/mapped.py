"""A file mapped into memory, and tensors that are views of it."""

from __future__ import annotations

import mmap
import stat
from pathlib import Path

import torch
from torch import Tensor

from martlet.errors import ModelFileError

__all__ = ["MappedFile", "file_size_bytes"]

# The name is missing in Python 3.11; the value is Linux's. Without it the kernel would count a
# private writable mapping against free memory and refuse a file that is bigger than RAM.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def file_size_bytes(path: Path) -> int:
    """Size of a regular file.

    Raises:
        ModelFileError: the file cannot be read, or is a folder, a pipe or a device.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path}: is not a regular file")
    return status.st_size


class MappedFile:
    """A file in memory, read on first touch; the file itself is never changed.

    The mapping is private and writable, because torch warns about tensors that are not; a write
    would go to a copy of the page. It lives until the last tensor of it is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = file_size_bytes(path)
        self._map: mmap.mmap | None = None
        if self.size_bytes == 0:
            return
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(
                    file.fileno(),
                    self.size_bytes,
                    flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be mapped: {error}") from error

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy of some bytes; the caller has checked the range."""
        assert 0 <= offset <= offset + nbytes <= self.size_bytes
        return b"" if self._map is None else self._map[offset : offset + nbytes]

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A contiguous tensor over the bytes from ``offset`` on, which the caller has checked."""
        count = 1
        for size in shape:
            count *= size
        nbytes = count * dtype.itemsize
        assert 0 <= offset <= self.size_bytes - nbytes, "range outside the file"
        if nbytes == 0 or self._map is None:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    def prefetch(self, offset: int, nbytes: int) -> None:
        """Let the kernel start to read a range that will be needed whole.

        Reading page by page as they are touched is several times slower on a cold disk.
        """
        if self._map is not None and nbytes > mmap.PAGESIZE:
            start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, offset + nbytes - start)

    def forget(self) -> None:
        """Give back the memory of all pages read so far.

        Tensors stay valid: a page that is touched again is read from the file again.
        """
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
