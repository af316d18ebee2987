import math

import torch

from martlet.layers.rotary import rotation

CPU = torch.device("cpu")


def test_a_pair_is_turned_by_position_times_frequency() -> None:
    x = torch.zeros(1, 1, 3, 4)
    x[..., 0] = x[..., 1] = 1.0  # the first components of both pairs
    turned = rotation([5], 3, head_dim=4, theta=100.0, device=CPU).turn(x)[0, 0]
    for i, position in enumerate((5, 6, 7)):
        near, far = position, position / 10  # frequencies 1 and 100 ** -0.5
        expected = [math.cos(near), math.cos(far), math.sin(near), math.sin(far)]
        # float32 angles below 8
        torch.testing.assert_close(turned[i], torch.tensor(expected), rtol=0, atol=2e-6)


def test_a_product_depends_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(2))

    def product(query: int, key: int) -> torch.Tensor:
        turned = [rotation([at], 1, 16, 1e4, CPU).turn(x) for at, x in ((query, q), (key, k))]
        return (turned[0] * turned[1]).sum()

    # float32: angles of the order of 1000 are off by up to 3e-5
    torch.testing.assert_close(product(1007, 1000), product(7, 0), rtol=0, atol=1e-3)
    assert (product(8, 0) - product(7, 0)).abs() > 0.01


def test_each_row_is_turned_from_its_own_start() -> None:
    x = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(4))
    turned = rotation([0, 9, 3], 4, 6, 1e4, CPU).turn(x)
    for row, start in enumerate((0, 9, 3)):
        alone = rotation([start], 4, 6, 1e4, CPU).turn(x[row : row + 1])
        assert torch.equal(turned[row], alone[0])


def test_rows_that_start_alike_share_one_rotation() -> None:
    assert rotation([3, 3], 4, 6, 1e4, CPU).cos.shape == (1, 1, 4, 3)
