"""What computes on the processor, for those who look at a machine."""

from __future__ import annotations

from martlet.kernels.cpu.grouped_linear import describe_kernel

__all__ = ["describe_int4_kernel"]


def describe_int4_kernel() -> str:
    """One line: what multiplies weights of 4 bits here, and why where it is not native code.

    Native code is compiled by this unless it was before, which takes about a second.
    """
    return describe_kernel()
