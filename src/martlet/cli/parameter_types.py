"""The kinds of values that flags take, each with a message for what is none."""

from __future__ import annotations

import math
from typing import Any

import click

from martlet.device.size import parse_bytes

__all__ = ["QUANTIZE", "QUANTIZES", "SIZE", "SLOTS", "TEXT", "Number"]


# ParamType takes a type argument from click 8.4 on only.
class _Size(click.ParamType):  # type: ignore[type-arg]
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return parse_bytes(value, param.opts[0] if param else "size")


class _Text(click.ParamType):  # type: ignore[type-arg]
    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail(
                f"character {error.start} is not valid UTF-8; check the encoding of the terminal",
                param,
                ctx,
            )
        return text


class _Quantize(click.ParamType):  # type: ignore[type-arg]
    """A format of weights, by the words of the engine."""

    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from martlet.engine.load_options import parse_quantize

        parse_quantize(str(value), param.opts[0] if param else "quantize")
        return str(value)


class _Quantizes(click.ParamType):  # type: ignore[type-arg]
    """Several formats with commas between them; the text as it is, each of them checked."""

    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        for part in str(value).split(","):
            QUANTIZE.convert(part, param, ctx)
        return str(value)


class _Slots(click.ParamType):  # type: ignore[type-arg]
    """A number of texts, or "auto"."""

    name = "slots"
    _number = click.IntRange(1, 256)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == "auto":
            return "auto"
        try:
            return int(self._number.convert(value, param, ctx))
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')}; it may also be auto.", param, ctx)


class Number(click.FloatRange):
    """A number in a range; click alone lets "nan" through, which is in no range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, or a message that names the range."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


QUANTIZE = _Quantize()
QUANTIZES = _Quantizes()
SIZE = _Size()
SLOTS = _Slots()
TEXT = _Text()
