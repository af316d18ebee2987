"""Where a checkpoint keeps several of our matrices in one."""

from __future__ import annotations

from collections.abc import Mapping

from martlet.models.architecture import CheckpointTensor

__all__ = ["fused_place"]


def fused_place(
    name: str, fused: str, parts: Mapping[str, int], prefix: str
) -> CheckpointTensor | None:
    """Where the weight or bias ``name`` lies if its layer is one of ``parts``, else None.

    In the checkpoint the layer ``fused`` has the rows of all parts one behind the other, so many
    of each, and then again, as often as they go in: once, or for every head. ``prefix`` may be
    missing in the names of the checkpoint.
    """
    first = 0
    for part, count in parts.items():
        if f".{part}." in name:
            whole = name.replace(part, fused)
            names = (whole, whole.removeprefix(prefix))
            return CheckpointTensor(names, sum(parts.values()), first, count)
        first += count
    return None
