"""Flags that several verbs share, and the values they become."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import click

from martlet.cli.option_groups import Command, grouped, with_flags
from martlet.cli.parameter_types import QUANTIZE, QUANTIZES, SIZE, SLOTS, TEXT, Number

__all__ = [
    "TEXT",
    "ChatOptions",
    "LoadOptions",
    "Number",
    "Sampling",
    "SamplingOptions",
    "ServingOptions",
    "as_json",
    "chat_options",
    "device_options",
    "load_options",
    "load_options_of_several",
    "model_argument",
    "offline_option",
    "sampling_options",
    "serving_options",
]


class Sampling(Protocol):
    """How the next token is chosen, wherever that was said."""

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of a model's methods."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """Where a model may live and how; None leaves the choice to the plan."""

    gpu_memory: int | None
    ram: int | None
    quantize: str | None
    device: str
    threads: int | None
    kv_cache: Literal["none", "int8"]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``martlet.load`` and ``martlet.plan``."""
        return {
            "gpu_memory": self.gpu_memory,
            "ram": self.ram,
            "quantize": self.quantize,
            "device": self.device,
            "num_threads": self.threads,
            "kv_cache": self.kv_cache,
        }


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen and when to stop; None leaves the model's default."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop: tuple[str, ...]
    seed: int | None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that were given on the command line, and no others."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if name == "stop" else value
            for name, value in given.items()
            if value is not None and value != ()
        }


@dataclass(frozen=True)
class ChatOptions:
    """What a dialogue begins with; None leaves it to the model."""

    system: str | None
    think: bool | None


@dataclass(frozen=True)
class ServingOptions:
    """For how many texts at a time memory is planned; None where the flag was left out."""

    slots: int | str | None
    context: int | None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``martlet.load`` and ``martlet.plan``."""
        return {"slots": self.slots, "context": self.context}


model_argument = click.argument("model", type=TEXT)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def _go_offline(context: click.Context, parameter: click.Parameter, is_offline: bool) -> None:
    """For this process and those that it starts, before the hub's library reads its variables."""
    if is_offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


offline_option = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    callback=_go_offline,
    help="Open no connection: only models that are here.",
)

_DEVICE = (
    click.option("--gpu-memory", type=SIZE, help="GPU memory to use at most, e.g. 6GiB."),
    click.option("--ram", type=SIZE, help="RAM to use at most, e.g. 16GiB."),
    click.option(
        "--device",
        type=click.Choice(["auto", "cuda", "cpu"]),
        default="auto",
        show_default=True,
        help="Where to compute.",
    ),
    offline_option,
)

_PLACE = (
    *_DEVICE,
    click.option(
        "--threads", type=click.IntRange(1), metavar="N", help="CPU threads to compute with."
    ),
    click.option(
        "--kv-cache",
        type=click.Choice(["int8", "none"]),
        default="none",
        show_default=True,
        help="Form of the keys and values of attention; int8 has half the bytes of float16.",
    ),
)

_LOAD = (
    *_PLACE,
    click.option(
        "--quantize",
        type=QUANTIZE,
        metavar="FORMAT",
        help="Weights of this form: int4, int8, none, or one with groups such as int4-g128; left "
        "out, int8 for floats as the hub has them, and else as they are.",
    ),
)

_LOAD_SEVERAL = (
    *_PLACE,
    click.option(
        "--quantize",
        type=QUANTIZES,
        metavar="FORMATS",
        help="Weights of these forms, one after the other, with commas between: "
        "none,int8,int4-g32; left out, int8 for floats as the hub has them, and else as they are.",
    ),
)

_CHAT = (
    click.option("--system", type=TEXT, metavar="TEXT", help="Tell a model for dialogue first."),
    click.option(
        "--think/--no-think",
        "think",
        default=None,
        help="Let it think before it answers, or not, where it can be told.",
    ),
)

_SERVING = (
    click.option(
        "--slots",
        type=SLOTS,
        metavar="N",
        help="Texts to write at a time; auto = up to 16, as memory allows.",
    ),
    click.option(
        "--context",
        type=click.IntRange(8, 1 << 20),
        metavar="N",
        help="Tokens that each of them may have at most; left out, those that the model has, "
        "4096 at most.",
    ),
)

_SAMPLING = (
    click.option(
        "--max-tokens", type=click.IntRange(1), metavar="N", help="Tokens to generate at most."
    ),
    click.option(
        "--temperature",
        type=Number(0, 100),
        metavar="X",
        help="0 takes the likeliest token; higher is freer.",
    ),
    click.option(
        "--top-k", type=click.IntRange(0), metavar="N", help="Keep the k likeliest tokens; 0 = all."
    ),
    click.option(
        "--top-p",
        type=Number(0, 1, min_open=True),
        metavar="X",
        help="Keep the likeliest tokens up to this probability.",
    ),
    click.option(
        "--min-p",
        type=Number(0, 1),
        metavar="X",
        help="Drop tokens less likely than this times the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=Number(0.01, 100),
        metavar="X",
        help="Divide the logit of tokens seen before; 1 = off.",
    ),
    click.option(
        "--presence-penalty",
        type=Number(-2, 2),
        metavar="X",
        help="Take this from the logit of tokens seen before.",
    ),
    click.option(
        "--frequency-penalty",
        type=Number(-2, 2),
        metavar="X",
        help="Take this from the logit for every time a token was seen.",
    ),
    click.option("--stop", type=TEXT, multiple=True, help="Stop at this text; may be repeated."),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="Same seed, same answer."
    ),
)


def device_options(function: Command) -> Command:
    """Add the flags of memory and device; the verb gets ``gpu_memory``, ``ram`` and ``device``."""
    return with_flags(function, _DEVICE)


def load_options(function: Command) -> Command:
    """Add the flags of loading; the verb gets them as ``loading: LoadOptions``."""
    return grouped(function, "loading", LoadOptions, _LOAD)


def load_options_of_several(function: Command) -> Command:
    """As ``load_options``; ``loading.quantize`` may be several formats with commas between."""
    return grouped(function, "loading", LoadOptions, _LOAD_SEVERAL)


def sampling_options(function: Command) -> Command:
    """Add the flags of generation; the verb gets them as ``sampling: SamplingOptions``."""
    return grouped(function, "sampling", SamplingOptions, _SAMPLING)


def chat_options(function: Command) -> Command:
    """Add the flags of a dialogue; the verb gets them as ``chatting: ChatOptions``."""
    return grouped(function, "chatting", ChatOptions, _CHAT)


def serving_options(function: Command) -> Command:
    """Add the flags of serving; the verb gets them as ``serving: ServingOptions``."""
    return grouped(function, "serving", ServingOptions, _SERVING)
