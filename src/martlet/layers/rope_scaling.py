"""How rotary frequencies are changed so that a model reads longer texts than it was trained on.

Each way gives the frequencies of the pairs of a head, in float32 as in training, and a factor of
cosine and sine. Two of them depend on how long a text may become; who asks says so once for all of
a text, because keys that were turned by other frequencies cannot be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Dynamic", "Linear", "Llama3", "LongRope", "Scaling", "Yarn", "plain_frequency"]


def plain_frequency(size: int, theta: float) -> Tensor:
    """What a position is multiplied by for each pair of ``size`` components, (size / 2,) float32.

    Source:
        Su et al. 2021, section 3.4.2.
    """
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)


@dataclass(frozen=True)
class Scaling:
    """No change; the others say what they change.

    ``factor`` multiplies cosine and sine.
    """

    factor: float = 1.0

    def frequency(self, size: int, theta: float, num_positions: int) -> Tensor:
        """Frequencies for texts of up to ``num_positions`` tokens, (size / 2,) float32."""
        return plain_frequency(size, theta)

    def positions(self, max_position_embeddings: int) -> int:
        """How far a model can read whose config.json names so many positions."""
        return max_position_embeddings


@dataclass(frozen=True, kw_only=True)
class Linear(Scaling):
    """All positions are divided by ``stretch``."""

    stretch: float

    def frequency(self, size: int, theta: float, num_positions: int) -> Tensor:
        """The plain ones, slower."""
        return plain_frequency(size, theta) / self.stretch

    def positions(self, max_position_embeddings: int) -> int:
        """As much farther as positions are closer."""
        return int(max_position_embeddings * self.stretch)


@dataclass(frozen=True, kw_only=True)
class Dynamic(Scaling):
    """Beyond the positions of training the base grows with the length of the text."""

    stretch: float
    trained_positions: int

    def frequency(self, size: int, theta: float, num_positions: int) -> Tensor:
        """The plain ones of a base that suits so long a text."""
        length = max(num_positions, self.trained_positions)
        growth = self.stretch * length / self.trained_positions - (self.stretch - 1)
        return plain_frequency(size, theta * growth ** (size / (size - 2)))

    def positions(self, max_position_embeddings: int) -> int:
        """As the factor promises."""
        return int(max_position_embeddings * self.stretch)


@dataclass(frozen=True, kw_only=True)
class Yarn(Scaling):
    """Slow pairs are stretched, fast ones stay, those between are mixed.

    A pair is fast that turns ``beta_fast`` times or more in a text of training, slow one that
    turns at most ``beta_slow`` times. ``is_truncated`` takes whole numbers of pairs for the ends.

    Source:
        Peng et al. 2023, section 3.2.
    """

    stretch: float
    trained_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True

    def frequency(self, size: int, theta: float, num_positions: int) -> Tensor:
        """A mixture by the number of the pair."""
        plain = theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        low, high = (self._pair(beta, size, theta) for beta in (self.beta_fast, self.beta_slow))
        if self.is_truncated:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        width = high - low or 0.001
        slow = ((torch.arange(size // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        # In the order in which the published models compute it, so that roundings are the same.
        fast = 1 - slow
        return 1.0 / (self.stretch * plain) * (1 - fast) + 1.0 / plain * fast

    def positions(self, max_position_embeddings: int) -> int:
        """The stretched length of training, or what is named if that is more."""
        return max(max_position_embeddings, int(self.trained_positions * self.stretch))

    def _pair(self, num_turns: float, size: int, theta: float) -> float:
        """The pair that turns so many times in a text of training, as a fraction."""
        wavelength = self.trained_positions / (num_turns * 2 * math.pi)
        return size * math.log(wavelength) / (2 * math.log(theta))


@dataclass(frozen=True, kw_only=True)
class LongRope(Scaling):
    """Every pair has a divisor of its own, one for short texts and one for long.

    Source:
        Ding et al. 2024, section 3.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained_positions: int

    def frequency(self, size: int, theta: float, num_positions: int) -> Tensor:
        """Those of a text that fits into the positions of training, or does not."""
        chosen = self.long if num_positions > self.trained_positions else self.short
        exponent = torch.arange(0, size, 2, dtype=torch.float32) / size
        return 1.0 / (torch.tensor(chosen, dtype=torch.float32) * theta**exponent)


@dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
    """Pairs with long waves are stretched, those with short ones stay, between it is smooth.

    A wave is long from trained_positions / ``low`` tokens on, short up to trained_positions /
    ``high``.
    """

    stretch: float
    low: float
    high: float
    trained_positions: int

    def frequency(self, size: int, theta: float, num_positions: int) -> Tensor:
        """A mixture by the length of the wave."""
        plain = plain_frequency(size, theta)
        wavelength = 2 * math.pi / plain
        share = (self.trained_positions / wavelength - self.low) / (self.high - self.low)
        between = (1 - share) * plain / self.stretch + share * plain
        is_long = wavelength > self.trained_positions / self.low
        is_short = wavelength < self.trained_positions / self.high
        return torch.where(is_long, plain / self.stretch, torch.where(is_short, plain, between))
