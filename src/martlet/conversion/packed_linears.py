"""The quantised linears of a GPTQ or AWQ checkpoint as weights in groups, nothing requantised."""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.conversion.awq import awq_integers, awq_zeros
from martlet.conversion.gptq import follows_groups, gptq_integers, gptq_zeros
from martlet.conversion.packed_settings import PackedSettings
from martlet.conversion.table import TensorTable
from martlet.errors import ModelFileError
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import GroupedTensor

__all__ = ["PackedLinears"]


class PackedLinears:
    """Linears by what stands before "qweight", as in "model.layers.0.mlp.up_proj."."""

    def __init__(self, table: TensorTable, settings: PackedSettings) -> None:
        self._table = table
        self._settings = settings

    @property
    def format(self) -> WeightFormat:
        """The format of every one of them."""
        return self._settings.format

    def has(self, stem: str) -> bool:
        """Whether that linear is quantised; others are floats."""
        return stem + "qweight" in self._table

    def shape(self, stem: str) -> tuple[int, int]:
        """(out_features, in_features) of a linear; reads no data."""
        in_features, out_features = self._shape(stem)
        return out_features, in_features

    def load(self, stem: str) -> GroupedTensor:
        """The linear: its integers, zeros and scales as they are.

        Raises:
            ModelFileError: a tensor is missing, has another size or type, or cannot be held.
        """
        in_features, out_features = self._shape(stem)
        num_groups = self._settings.num_groups(in_features)
        scale = self._scale(stem, num_groups, out_features)
        zero = self._zero(stem, num_groups, out_features)
        self._check_order(stem, in_features, num_groups)
        words = self._words(stem + "qweight")
        is_awq = self._settings.method == "awq"
        data = awq_integers(words) if is_awq else gptq_integers(words, self._settings.bits)
        return GroupedTensor(
            data,
            self._repeated(scale, in_features),
            torch.ones(out_features, dtype=torch.float32),
            torch.Size((out_features, in_features)),
            self.format,
            None if zero is None else self._repeated(zero.to(torch.float16), in_features),
        )

    def require_no_bias(self, stem: str) -> None:
        """Refuse a bias where the architecture has none; writers like to put zeros there.

        Raises:
            ModelFileError: there is one, and it is not zero.
        """
        name = stem + "bias"
        if name in self._table and bool(self._table.find(name).load().any()):
            raise ModelFileError(
                f"{self._table.path}: {name} is not zero, but the architecture has no bias there; "
                f"it is another architecture than config.json says"
            )

    def _shape(self, stem: str) -> tuple[int, int]:
        """Inputs and outputs of a linear."""
        rows, columns = self._table.shape(stem + "qweight", 2)
        in_word = 32 // self._settings.bits
        if self._settings.method == "gptq":
            return rows * in_word, columns
        if rows % 2:
            raise ModelFileError(
                f"{self._table.path}: {stem}qweight has {rows} rows, an odd number"
            )
        return rows, columns * in_word

    def _words(self, name: str) -> Tensor:
        tensor = self._table.find(name).load()
        if tensor.dtype != torch.int32:
            raise ModelFileError(f"{self._table.path}: {name} is {tensor.dtype}, expected int32")
        return tensor

    def _scale(self, stem: str, num_groups: int, out_features: int) -> Tensor:
        """The scales: (out_features, num_groups) float16."""
        name = stem + "scales"
        self._check_shape(name, (num_groups, out_features))
        stored = self._table.find(name).load()
        if not stored.is_floating_point():
            raise ModelFileError(f"{self._table.path}: {name} is {stored.dtype}, expected a float")
        scale = stored.to(torch.float16)
        if not bool(torch.isfinite(scale).all()) or not torch.equal(scale.to(stored.dtype), stored):
            raise ModelFileError(
                f"{self._table.path}: {name}, {stored.dtype}, has a value that is not finite or "
                f"not a float16; take the float checkpoint instead"
            )
        return scale.T.contiguous()

    def _zero(self, stem: str, num_groups: int, out_features: int) -> Tensor | None:
        """The zeros: (out_features, num_groups) uint8; None where the format implies them."""
        settings = self._settings
        name = stem + "qzeros"
        in_word = 32 // settings.bits
        self._check_shape(name, (num_groups, -(-out_features // in_word)))
        words = self._words(name)
        if settings.method == "awq":
            return awq_zeros(words)
        zero = gptq_zeros(words, settings.bits, settings.zero_offset)[:out_features]
        if not settings.is_symmetric:
            return zero
        middle = 1 << settings.bits - 1
        # Some that say "gptq" hold zeros of the second format. Where all must be the middle, one
        # more than that can mean nothing else.
        if not bool(((zero == middle) | (zero == middle + settings.zero_offset)).all()):
            raise ModelFileError(
                f"{self._table.path}: {name} holds zeros from {int(zero.min())} to "
                f"{int(zero.max())}, but sym is true, which makes all of them {middle}; "
                f"take the float checkpoint instead"
            )
        return None

    def _check_order(self, stem: str, in_features: int, num_groups: int) -> None:
        name = stem + "g_idx"
        settings = self._settings
        if settings.method != "gptq":
            return
        if name not in self._table:
            if settings.is_reordered:
                raise ModelFileError(
                    f"{self._table.path}: has no {name}, although desc_act is true"
                )
            return
        self._check_shape(name, (in_features,))
        groups = self._words(name)
        if int(groups.min()) < 0 or int(groups.max()) >= num_groups:
            raise ModelFileError(
                f"{self._table.path}: {name} names groups {int(groups.min())} to "
                f"{int(groups.max())}, there are 0 to {num_groups - 1}"
            )
        # Some writers leave it zero where they did not reorder.
        is_unset = not settings.is_reordered and not bool(groups.any())
        if not is_unset and not follows_groups(groups, settings.group_size):
            raise ModelFileError(
                f"{self._table.path}: {name} (desc_act) spreads a group over inputs that are no "
                f"neighbours, which our groups cannot hold; quantise the float model with "
                f"`martlet quantize`, or use a checkpoint with desc_act false"
            )

    def _check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        shape = self._table.find(name).shape
        if shape != expected:
            raise ModelFileError(
                f"{self._table.path}: {name} has shape {list(shape)}, expected {list(expected)} "
                f"for groups of {self._settings.group_size or 'all'} inputs"
            )

    def _repeated(self, values: Tensor, in_features: int) -> Tensor:
        """From (out_features, their groups) to (out_features, our groups)."""
        held = self._settings.held_group_size
        num_held = -(-in_features // held)
        repeats = num_held  # of one group for the whole row, or for more than that
        if self._settings.group_size is not None:
            repeats = min(self._settings.group_size // held, num_held)
        return values.repeat_interleave(repeats, dim=1)[:, :num_held].contiguous()
