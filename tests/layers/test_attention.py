import torch

from martlet.layers.attention import causal_bias, merge_heads, padding_bias, split_heads

LIKE = torch.zeros(1)


def test_heads_come_together_as_they_were_split() -> None:
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert heads[1, 2, 0].tolist() == x[1, 0, 4:6].tolist()
    assert torch.equal(merge_heads(heads), x)


def test_a_query_sees_itself_and_what_stands_before() -> None:
    visible = causal_bias([2, 0], 2, 4, LIKE) == 0
    assert visible[:, 0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0]],
    ]


def test_rows_that_start_alike_share_one_mask() -> None:
    assert causal_bias([3, 3, 3], 2, 5, LIKE).shape == (1, 1, 2, 5)


def test_padding_is_hidden_and_no_padding_needs_no_mask() -> None:
    assert padding_bias([4, 4], 4, LIKE) is None
    mask = padding_bias([4, 1, 0], 4, LIKE)
    assert mask is not None
    assert (mask[:, 0, 0] == 0).int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_a_row_that_sees_nothing_gives_numbers_in_every_float_type() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        mask = padding_bias([0, 3], 3, LIKE.to(dtype))
        assert mask is not None
        scores = torch.full((2, 1, 1, 3), -100.0, dtype=dtype) + mask
        assert torch.isfinite(scores.softmax(-1)).all()
