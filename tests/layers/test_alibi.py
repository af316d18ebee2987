import torch

from martlet.layers.alibi import alibi_bias, alibi_by_distance, alibi_slopes

CPU = torch.device("cpu")


def test_slopes_halve_where_there_are_eight_heads() -> None:
    assert alibi_slopes(8) == [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(16) == [2.0 ** (-power / 2) for power in range(1, 17)]


def test_heads_beyond_a_power_of_two_lie_between_the_others() -> None:
    slopes = alibi_slopes(12)
    assert slopes[:8] == alibi_slopes(8)
    assert slopes[8:] == [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert alibi_slopes(1) == [2.0**-8]


def test_a_bias_is_that_of_its_distance_in_every_row() -> None:
    starts, num_queries, num_keys = [0, 5], 3, 8
    bias = alibi_bias(4, starts, num_queries, num_keys, torch.zeros(1))
    by_distance = alibi_by_distance(4, num_keys, CPU)
    assert bias.shape == (2, 4, num_queries, num_keys)
    for row, start in enumerate(starts):
        for query in range(num_queries):
            for key in range(start + query + 1):
                expected = by_distance[:, start + query - key]
                assert torch.equal(bias[row, :, query, key], expected)


def test_rows_that_start_alike_share_a_bias_of_the_type_asked_for() -> None:
    like = torch.zeros(1, dtype=torch.bfloat16)
    bias = alibi_bias(2, [300, 300], 1, 301, like)
    assert bias.shape == (1, 2, 1, 301)
    assert bias.dtype == torch.bfloat16
    # Near keys are exact, however late the position.
    assert bias[0, 0, 0, -4:].tolist() == [-3 / 16, -2 / 16, -1 / 16, 0.0]
