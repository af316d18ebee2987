import pytest
import torch

from martlet.layers.kv_cache import KVCache, KVShape
from martlet.layers.rope_scaling import LongRope
from martlet.layers.rotary import Rotary
from martlet.layers.sight import Sight, Span, pass_of, step_of

LIKE = torch.zeros(2, 6, 8)
ROTARY = Rotary(4, 100.0)


def _span(num_keys: int = 6, starts: tuple[int, ...] = (0, 0), capacity: int = 12) -> Span:
    return Span(starts, [6, 6], 6, num_keys, capacity)


def test_a_whole_pass_needs_no_bias() -> None:
    made = pass_of(Sight(ROTARY), _span(), LIKE)
    assert made.bias is None
    assert made.is_causal
    assert made.rotation is not None
    assert made.counts == [6, 6]


def test_a_pass_that_goes_on_is_masked() -> None:
    made = pass_of(Sight(ROTARY), _span(9, (3, 1)), LIKE)
    assert made.bias is not None
    assert made.bias.shape == (2, 1, 6, 9)
    assert not made.is_causal


def test_only_keys_beyond_the_window_leave_masking_to_it() -> None:
    assert pass_of(Sight(ROTARY, 6), _span(), LIKE).is_causal
    made = pass_of(Sight(ROTARY, 5), _span(), LIKE)
    assert (made.bias, made.is_causal, made.window) == (None, False, 5)


def test_layers_may_be_turned_by_nothing() -> None:
    assert pass_of(Sight(), _span(), LIKE).rotation is None


@pytest.mark.parametrize(("capacity", "divisor"), [(8, 2.0), (9, 4.0)])
def test_the_room_for_a_text_chooses_among_frequencies(capacity: int, divisor: float) -> None:
    scaling = LongRope(short=(2.0, 2.0), long=(4.0, 4.0), trained_positions=8)
    sight = Sight(Rotary(4, 100.0, scaling))
    rotation = pass_of(sight, _span(capacity=capacity), LIKE).rotation
    assert rotation is not None
    # The first pair has frequency 1, the second token position 1.
    torch.testing.assert_close(rotation.sin[0, 0, 1, 0], torch.tensor(1 / divisor).sin())


def test_steps_have_the_frequencies_of_their_kind_and_windows_that_hide_something() -> None:
    cache = KVCache(KVShape(1, 2, 1, 4, 12), LIKE)
    cache.begin_steps()
    assert cache.stepping is not None
    kinds = {"full": Sight(ROTARY, 12), "sliding": Sight(Rotary(2, 9.0, is_interleaved=True), 11)}
    full, sliding = (
        step_of(name, sight, cache.stepping, LIKE[:, :1]) for name, sight in kinds.items()
    )
    assert (full.window, sliding.window) == (None, 11)
    assert full.counts == [1, 1]
    assert full.on_device is not None
    assert sliding.on_device is not None
    assert full.on_device.turn is not None
    assert sliding.on_device.turn is not None
    torch.testing.assert_close(full.on_device.turn.frequency, torch.tensor([1.0, 0.1]))
    assert sliding.on_device.turn.frequency.tolist() == [1.0]
    assert sliding.on_device.turn.is_interleaved
    again = step_of("full", kinds["full"], cache.stepping, LIKE[:, :1])
    assert again.on_device is not None
    assert again.on_device.turn is not None
    assert again.on_device.turn.frequency is full.on_device.turn.frequency
