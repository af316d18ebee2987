import math

import torch

from martlet.layers.rotary import Rotary, Rotation, rotation


def _rotation(starts: list[int], num_tokens: int, size: int, theta: float) -> Rotation:
    return rotation(Rotary(size, theta).turn(2000, torch.device("cpu")), starts, num_tokens)


def test_a_pair_is_turned_by_position_times_frequency() -> None:
    x = torch.zeros(1, 1, 3, 4)
    x[..., 0] = x[..., 1] = 1.0  # the first components of both pairs
    turned = _rotation([5], 3, 4, 100.0).turn(x)[0, 0]
    for i, position in enumerate((5, 6, 7)):
        near, far = position, position / 10  # frequencies 1 and 100 ** -0.5
        expected = [math.cos(near), math.cos(far), math.sin(near), math.sin(far)]
        # float32 angles below 8
        torch.testing.assert_close(turned[i], torch.tensor(expected), rtol=0, atol=2e-6)


def test_a_product_depends_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(2))

    def product(query: int, key: int) -> torch.Tensor:
        turned = [_rotation([at], 1, 16, 1e4).turn(x) for at, x in ((query, q), (key, k))]
        return (turned[0] * turned[1]).sum()

    # float32: angles of the order of 1000 are off by up to 3e-5
    torch.testing.assert_close(product(1007, 1000), product(7, 0), rtol=0, atol=1e-3)
    assert (product(8, 0) - product(7, 0)).abs() > 0.01


def test_each_row_is_turned_from_its_own_start() -> None:
    x = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(4))
    turned = _rotation([0, 9, 3], 4, 6, 1e4).turn(x)
    for row, start in enumerate((0, 9, 3)):
        alone = _rotation([start], 4, 6, 1e4).turn(x[row : row + 1])
        assert torch.equal(turned[row], alone[0])


def test_rows_that_start_alike_share_one_rotation() -> None:
    assert _rotation([3, 3], 4, 6, 1e4).cos.shape == (1, 1, 4, 3)
