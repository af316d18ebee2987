"""Joins the shards of a model-parallel checkpoint.

A linear that was split by output rows is joined along axis 0, one split by input columns along
axis 1. A fused one (query, key and value in one matrix) holds its parts in every shard:
[q_s; k_s; v_s], joined to [q_0; q_1; ...; k_0; k_1; ...; v_0; v_1; ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from martlet.conversion.table import TensorTable
from martlet.errors import ModelFileError

__all__ = ["Piece", "Shards"]


@dataclass(frozen=True)
class Piece:
    """Where one of our tensors comes from.

    ``axis`` None: every shard has a copy. ``parts``: the number of parts fused in each shard;
    ``pick``: the one wanted, None for all of them.
    """

    name: str
    axis: int | None = None
    parts: int = 1
    pick: int | None = None


class Shards:
    """The shards of one checkpoint, in order of their rank."""

    def __init__(self, path: Path, tables: Sequence[TensorTable]) -> None:
        assert tables, "a checkpoint has at least one shard"
        self.path = path
        self.tables = tables
        for table in tables[1:]:
            if set(table.names()) != set(tables[0].names()):
                odd = sorted(set(table.names()) ^ set(tables[0].names()))
                raise ModelFileError(
                    f"{table.path}: holds other tensors than {tables[0].path.name}: {odd[0]}; "
                    f"the shards belong to different checkpoints"
                )

    def __contains__(self, name: object) -> bool:
        return name in self.tables[0]

    def size(self, name: str, axis: int, num_axes: int = 2, *, split: bool = False) -> int:
        """Length of an axis; ``split`` means it is spread over the shards, so theirs are added.

        Raises:
            ModelFileError: no such tensor, or another number of axes.
        """
        if split:
            return sum(table.shape(name, num_axes)[axis] for table in self.tables)
        return self.tables[0].shape(name, num_axes)[axis]

    def dtype(self, name: str) -> torch.dtype:
        """Element type, the same in all shards.

        Raises:
            ModelFileError: no such tensor, or shards that disagree.
        """
        dtypes = {table.find(name).dtype for table in self.tables}
        if len(dtypes) != 1:
            raise ModelFileError(f"{self.path}: {name} has different types in different shards")
        return dtypes.pop()

    def load(self, piece: Piece) -> Tensor:
        """The joined tensor; a view of the file where no joining is needed.

        Raises:
            ModelFileError: a shard lacks it, or the shapes of the shards do not fit together.
        """
        if piece.axis is None:
            return self.tables[0].find(piece.name).load()
        tensors = [table.find(piece.name).load() for table in self.tables]
        first = tensors[0]
        for tensor in tensors:
            if tensor.dtype != first.dtype or tensor.shape != first.shape:
                raise ModelFileError(
                    f"{self.path}: {piece.name} has shapes {list(first.shape)} and "
                    f"{list(tensor.shape)} in different shards"
                )
        if piece.axis >= first.ndim or first.shape[piece.axis] % piece.parts:
            raise ModelFileError(
                f"{self.path}: {piece.name} has shape {list(first.shape)} in a shard, which does "
                f"not divide into {piece.parts} parts along axis {piece.axis}"
            )
        wanted = range(piece.parts) if piece.pick is None else (piece.pick,)
        chunks = [
            tensor.chunk(piece.parts, dim=piece.axis)[part] for part in wanted for tensor in tensors
        ]
        if len(tensors) == 1 and piece.pick is None:
            return first
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=piece.axis)

    def require_equal(self, name: str, other: str) -> None:
        """Check that two tensors, saved twice because two modules share them, are one.

        Raises:
            ModelFileError: they differ in some shard.
        """
        for table in self.tables:
            one, two = table.find(name).load(), table.find(other).load()
            if one.dtype != two.dtype or not torch.equal(one, two):
                raise ModelFileError(
                    f"{table.path}: {other} differs from {name}, although the model shares them"
                )
            table.forget()

    def forget(self) -> None:
        """Give back the memory of the pages read so far."""
        for table in self.tables:
            table.forget()
