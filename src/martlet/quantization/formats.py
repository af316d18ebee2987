"""The names and sizes of the integer formats that a matrix of weights may have."""

from __future__ import annotations

import re
from dataclasses import dataclass

from martlet.errors import UsageError

__all__ = ["GROUP_SIZES", "INT4", "INT8", "WeightFormat", "named_format", "parse_format"]

GROUP_SIZES = (32, 64, 128)

_NAME = re.compile(r"int(?P<bits>4|8)(?:-g(?P<group>32|64|128))?(?P<zeros>-asym)?")


@dataclass(frozen=True)
class WeightFormat:
    """Bits of an integer, inputs that share a scale, and whether a zero belongs to each scale.

    ``group_size`` None is one scale for a whole row. Integers of 4 bits always have groups, and
    they alone may have zeros.
    """

    bits: int
    group_size: int | None = None
    has_zeros: bool = False

    def __post_init__(self) -> None:
        assert self.bits in (4, 8)
        assert self.group_size in (None, *GROUP_SIZES)
        assert self.bits == 8 or self.group_size is not None
        assert not self.has_zeros or self.bits == 4

    @property
    def name(self) -> str:
        """As in files and options: "int8", "int8-g64", "int4-g32", "int4-g128-asym"."""
        group = "" if self.group_size is None else f"-g{self.group_size}"
        return f"int{self.bits}{group}{'-asym' if self.has_zeros else ''}"

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest integer that a weight may become: 0..15 or -127..127."""
        return (0, 15) if self.bits == 4 else (-127, 127)

    @property
    def center(self) -> float:
        """The integer that stands for zero where no zero is stored."""
        return 8.0 if self.bits == 4 else 0.0

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of an integer and its share of the scales of groups: 1 for int8, 0.5625 for int4.

        Scales of rows are left out.
        """
        group_bytes = 4 if self.has_zeros else 2
        return self.bits / 8 + (group_bytes / self.group_size if self.group_size else 0)

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a matrix as a file holds it: integers, scales, zeros, scales of rows."""
        row_bytes = -(-in_features * self.bits // 8)
        if self.group_size is not None:
            num_groups = -(-in_features // self.group_size)
            row_bytes += num_groups * (4 if self.has_zeros else 2)
        return out_features * (row_bytes + 4)


INT8 = WeightFormat(8)
INT4 = WeightFormat(4, 32)
"""What "int4" without more means."""


def parse_format(name: str) -> WeightFormat | None:
    """The format of that name, None where there is none; "int4" is groups of 32."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    bits, group = int(match["bits"]), match["group"]
    if bits == 8 and match["zeros"]:
        return None
    if bits == 4 and group is None:
        group = "32"
    return WeightFormat(bits, None if group is None else int(group), match["zeros"] is not None)


def named_format(name: str, option: str = "quantize", *, besides: str = "") -> WeightFormat:
    """The format of that name; ``option`` is what the error calls it.

    ``besides`` is what else the option takes, for the error: "none, ".

    Raises:
        UsageError: there is no such format; lists those that there are.
    """
    format = parse_format(name) if isinstance(name, str) else None
    if format is None:
        sizes = ", ".join(map(str, GROUP_SIZES[:-1])) + f" or {GROUP_SIZES[-1]}"
        raise UsageError(
            f"{option} is {name!r:.40}; it must be {besides}int8, int4 (groups of 32), int8-gN, "
            f"int4-gN or int4-gN-asym with N {sizes}"
        )
    return format
