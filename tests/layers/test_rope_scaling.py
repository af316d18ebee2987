"""What each way of stretching does to frequencies; their values are held to an oracle elsewhere."""

import torch

from martlet.layers.rope_scaling import (
    Dynamic,
    Linear,
    Llama3,
    LongRope,
    Scaling,
    Yarn,
    plain_frequency,
)

SIZE, THETA = 16, 1e4
PLAIN = plain_frequency(SIZE, THETA)
TURNS = 64 * PLAIN / (2 * torch.pi)  # of each pair in a text of 64 tokens


def test_linear_divides_all_frequencies() -> None:
    assert torch.equal(Linear(stretch=4.0).frequency(SIZE, THETA, 9), PLAIN / 4)


def test_dynamic_changes_nothing_up_to_the_positions_of_training() -> None:
    scaling = Dynamic(stretch=4.0, trained_positions=64)
    assert torch.equal(scaling.frequency(SIZE, THETA, 64), PLAIN)
    longer = scaling.frequency(SIZE, THETA, 256)
    assert longer[0] == PLAIN[0]
    # The slowest pair is slowed by what the base was raised for: 4 * 256 / 64 - 3.
    torch.testing.assert_close(longer[-1], PLAIN[-1] / 13)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    scaling = Yarn(stretch=4.0, trained_positions=64, beta_fast=4.0, beta_slow=1.0)
    ratio = PLAIN / scaling.frequency(SIZE, THETA, 9)
    assert ratio[TURNS >= 4].tolist() == [1.0]
    torch.testing.assert_close(ratio[TURNS < 0.3], torch.full((4,), 4.0))
    assert ((ratio > 1) & (ratio < 3.9)).sum() == 2


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    scaling = Llama3(stretch=8.0, low=1.0, high=4.0, trained_positions=64)
    ratio = PLAIN / scaling.frequency(SIZE, THETA, 9)
    assert ratio[TURNS > 4].tolist() == [1.0]
    torch.testing.assert_close(ratio[TURNS < 1], torch.full((5,), 8.0))
    assert 1 < ratio[1] < 8


def test_longrope_has_divisors_for_short_and_for_long_texts() -> None:
    short, long = (2.0,) * 8, (3.0,) * 8
    scaling = LongRope(1.5, short=short, long=long, trained_positions=64)
    torch.testing.assert_close(scaling.frequency(SIZE, THETA, 64), PLAIN / 2)
    torch.testing.assert_close(scaling.frequency(SIZE, THETA, 65), PLAIN / 3)
    assert scaling.factor == 1.5


def test_positions_reach_as_far_as_the_scaling_says() -> None:
    assert Scaling().positions(100) == 100
    assert Linear(stretch=4.0).positions(100) == 400
    assert Dynamic(stretch=4.0, trained_positions=100).positions(100) == 400
    # Some files name the stretched length, others that of training.
    yarn = Yarn(stretch=4.0, trained_positions=100)
    assert yarn.positions(100) == yarn.positions(400) == 400
    assert LongRope(short=(1.0,), long=(1.0,), trained_positions=10).positions(100) == 100
    assert Llama3(stretch=8.0, low=1.0, high=4.0, trained_positions=10).positions(100) == 100
