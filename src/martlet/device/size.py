"""Sizes of memory as people write them."""

from __future__ import annotations

import math
import re

from martlet.errors import UsageError

__all__ = ["MIB", "format_bytes", "parse_bytes", "whole_mib"]

MIB = 1 << 20

_FACTORS: dict[str, int] = {
    "": 1,
    "B": 1,
    **{letter: 1 << (10 * power) for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}IB": 1 << (10 * power) for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_LARGEST_BYTES = 1 << 60


def parse_bytes(size: str | int, name: str = "size") -> int:
    """The number of bytes that a size stands for: ``"6GiB"``, ``"6GB"``, ``"512M"``, ``1 << 30``.

    KiB, MiB, GiB, TiB and the bare letters K, M, G, T count in 1024s; KB, MB, GB, TB in 1000s. A
    bare number is bytes. ``name`` is the flag or argument that the error message names.

    Raises:
        UsageError: not a size, not positive, or beyond 1 EiB.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        num_bytes = size
    else:
        num_bytes = _parse_text(size, name)
    if not 0 < num_bytes <= _LARGEST_BYTES:
        raise UsageError(f"{name} is {size!r:.40}; it must be more than 0 bytes and at most 1 EiB")
    return num_bytes


def _parse_text(size: object, name: str) -> int:
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(
            f"{name} is {size!r:.40}, which is not a size; write a number and a unit, "
            "as in 6GiB, 512MiB or 6000000000"
        )
    # Digits beyond the largest size would only make a huge integer before it is refused.
    return math.floor(min(float(match[1]), 2.0 * _LARGEST_BYTES) * factor)


def format_bytes(num_bytes: int) -> str:
    """A size for people, one decimal: ``24.1 MiB``."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    value = float(num_bytes)
    unit = "B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007 - the unit reached is the result
        value /= 1024
        if value < 1023.95:  # 1023.95 and more would be printed as 1024.0
            break
    return f"{value:.1f} {unit}"


def whole_mib(num_bytes: int) -> int:
    """Mebibytes, rounded up: what is missing by this number is enough when it is added."""
    return -(-num_bytes // MIB)
