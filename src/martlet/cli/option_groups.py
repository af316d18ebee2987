"""Flags that come to a verb together: as one value, in the order in which its help lists them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

__all__ = ["Command", "grouped", "with_flags"]

Command = Callable[..., None]


def grouped(
    function: Command,
    name: str,
    group: type[Any],
    flags: tuple[Callable[[Command], Command], ...],
) -> Command:
    """The command with these flags, whose values it gets as one ``name: group``, a dataclass."""

    @functools.wraps(function)
    def call(**given: Any) -> None:
        values = {field.name: given.pop(field.name) for field in fields(group)}
        function(**given, **{name: group(**values)})

    return with_flags(call, flags)


def with_flags(function: Command, flags: tuple[Callable[[Command], Command], ...]) -> Command:
    """The command with these flags, in the order in which its help lists them."""
    for flag in reversed(flags):
        function = flag(function)
    return function
