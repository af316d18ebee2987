"""What a ``quantization_config`` of the Hugging Face layout says about packed integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet.checkpoint.shards import read_json_object
from martlet.errors import ModelFileError
from martlet.quantization.formats import GROUP_SIZES, WeightFormat

__all__ = ["PackedSettings", "read_packed_settings"]

_WAY_OUT = "take the float checkpoint instead: it is quantised while it is loaded"
# AutoGPTQ and AutoAWQ wrote these beside config.json before it had a field for them.
_OLDER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_OLDER_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}


@dataclass(frozen=True)
class PackedSettings:
    """How the linears of a GPTQ or AWQ checkpoint are packed.

    ``group_size`` None is one scale for all inputs of a row. ``is_symmetric``: the zero of every
    group is the middle of the integers. ``zero_offset`` is what a stored zero lacks: 1 in GPTQ's
    first format, otherwise 0. ``is_reordered``: inputs may be assigned to groups in any order.
    """

    method: str
    bits: int
    group_size: int | None
    is_symmetric: bool = False
    zero_offset: int = 0
    is_reordered: bool = False

    @property
    def held_group_size(self) -> int:
        """The largest of our groups that divides theirs, so that a scale is repeated at most."""
        if self.group_size is None:
            return GROUP_SIZES[-1]
        return max(size for size in GROUP_SIZES if self.group_size % size == 0)

    @property
    def format(self) -> WeightFormat:
        """The format that holds these integers as they are."""
        has_zeros = self.bits == 4 and not self.is_symmetric
        return WeightFormat(self.bits, self.held_group_size, has_zeros)

    def num_groups(self, in_features: int) -> int:
        """Groups of a row in the checkpoint."""
        return 1 if self.group_size is None else -(-in_features // self.group_size)


def read_packed_settings(folder: Path, config: Mapping[str, Any]) -> PackedSettings | None:
    """The settings of a folder, None where its weights are floats.

    ``config`` is its config.json. An older checkpoint may have them in a file of their own.

    Raises:
        ModelFileError: another method, or values that no format of ours holds.
    """
    raw = config.get("quantization_config")
    where = folder / "config.json"
    if raw is None:
        for name, method in _OLDER_FILES.items():
            if (folder / name).is_file():
                where = folder / name
                raw = {"quant_method": method, **read_json_object(where)}
                break
        else:
            return None
    if not isinstance(raw, dict):
        raise ModelFileError(f"{where}: quantization_config is no object but {raw!r:.40}")
    fields = _Fields(where, {_OLDER_NAMES.get(name, name): value for name, value in raw.items()})
    method = fields.choice("quant_method", None, ("gptq", "awq"))
    return _gptq(fields) if method == "gptq" else _awq(fields)


def _gptq(fields: _Fields) -> PackedSettings:
    bits = fields.number("bits", 4, (4, 8))
    if fields.flag("is_marlin_format", default=False):
        raise fields.bad("is_marlin_format", True, "false")
    layout = fields.choice("checkpoint_format", "gptq", ("gptq", "gptq_v2"))
    fields.choice("pack_dtype", "int32", ("int32",))
    fields.require_uniform()
    is_symmetric = fields.flag("sym", default=True)
    if bits == 8 and not is_symmetric:
        raise fields.bad("sym", False, "true where bits is 8")
    return PackedSettings(
        method="gptq",
        bits=bits,
        group_size=fields.group_size(),
        is_symmetric=is_symmetric,
        zero_offset=1 if layout == "gptq" else 0,
        is_reordered=fields.flag("desc_act", default=False),
    )


def _awq(fields: _Fields) -> PackedSettings:
    bits = fields.number("bits", 4, (4,))
    fields.choice("version", "gemm", ("gemm",))
    # Kept even where zero_point is false: what reads these files takes the zeros that they hold.
    fields.flag("zero_point", default=True)
    return PackedSettings(method="awq", bits=bits, group_size=fields.group_size())


@dataclass(frozen=True)
class _Fields:
    """Values from a stranger's file, checked one by one."""

    where: Path
    values: Mapping[str, Any]

    def bad(self, name: str, value: object, supported: str) -> ModelFileError:
        return ModelFileError(
            f"{self.where}: {name} of the quantised weights is {value!r:.60}, supported is "
            f"{supported}; {_WAY_OUT}"
        )

    def choice(self, name: str, default: str | None, supported: Collection[str]) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str) or value.lower() not in supported:
            raise self.bad(name, value, " or ".join(supported))
        return value.lower()

    def number(self, name: str, default: int, supported: Collection[int]) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or value not in supported:
            raise self.bad(name, value, " or ".join(map(str, supported)))
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, value, "true or false")
        return value

    def group_size(self) -> int | None:
        value = self.values.get("group_size", 128)
        if type(value) is int and value == -1:
            return None
        if type(value) is not int or value < 1 or value % GROUP_SIZES[0]:
            raise self.bad("group_size", value, f"-1 or a multiple of {GROUP_SIZES[0]}")
        return value

    def require_uniform(self) -> None:
        """Refuse settings for single linears; names of those that were left float are no matter."""
        rules = self.values.get("dynamic") or {}
        if not isinstance(rules, dict) or any(not str(rule).startswith("-:") for rule in rules):
            raise self.bad("dynamic", rules, "one setting for all linears")
