"""What layers of one kind share in a pass: a model may have several kinds, as full and sliding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from martlet.kernels import ops
from martlet.layers.attention import DeviceStep, Pass
from martlet.layers.decoder_cache import SteppingCache
from martlet.layers.masks import decoder_mask
from martlet.layers.rotary import Rotary, rotation

__all__ = ["Sight", "Span", "pass_of", "step_of"]


@dataclass(frozen=True)
class Sight:
    """How layers see a text: what turns their heads, and how many tokens back they look.

    With a ``window`` of w a token sees itself and the w - 1 before it. The cache keeps all tokens
    nevertheless.
    """

    rotary: Rotary | None = None
    window: int | None = None


@dataclass(frozen=True)
class Span:
    """Where the tokens of a pass stand.

    ``capacity`` is how long the texts may become: scalings that depend on the length go by it, so
    that one text never mixes two rotations.

    Shapes:
        starts, counts: one a row, the first position and the real tokens
    """

    starts: Sequence[int]
    counts: list[int]
    num_tokens: int
    num_keys: int
    capacity: int


def pass_of(sight: Sight, span: Span, like: Tensor) -> Pass:
    """What the layers share that see so; ``like`` has device and dtype of the hidden state."""
    turns = None
    if sight.rotary is not None:
        turn = sight.rotary.turn(span.capacity, like.device)
        turns = rotation(turn, span.starts, span.num_tokens)
    bias, is_causal = None, False
    if sight.window is None or span.num_keys <= sight.window:
        bias, is_causal = decoder_mask(span.starts, span.num_tokens, span.num_keys, like)
    return Pass(span.counts, bias, is_causal, rotation=turns, window=sight.window)


def step_of(name: str, sight: Sight, cache: SteppingCache, like: Tensor) -> Pass:
    """The same for steps whose lengths are on the device; ``name`` tells kinds of layers apart.

    Shapes:
        like: (num_slots, 1, hidden_size)
    """
    turn, rotary = None, sight.rotary
    if rotary is not None:
        frequency = cache.step_constant(
            f"frequency {name}", lambda: rotary.turn(cache.max_tokens, like.device).frequency
        )
        turn = ops.Turn(frequency, rotary.is_interleaved, rotary.scaling.factor)
    # A window that holds all tokens hides none.
    is_narrow = sight.window is not None and sight.window < cache.max_tokens
    window = sight.window if is_narrow else None
    return Pass([1] * len(like), None, False, window=window, on_device=DeviceStep(turn=turn))
