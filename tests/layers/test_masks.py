import pytest
import torch

from martlet.layers.masks import aligned_bias, causal_bias, padding_bias

LIKE = torch.zeros(1)


def test_a_query_sees_itself_and_what_stands_before() -> None:
    visible = causal_bias([2, 0], 2, 4, LIKE) == 0
    assert visible[:, 0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0]],
    ]


def test_a_window_hides_all_but_the_last_keys() -> None:
    visible = causal_bias([2, 0], 2, 4, LIKE, window=2) == 0
    assert visible[:, 0].int().tolist() == [
        [[0, 1, 1, 0], [0, 0, 1, 1]],
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


def test_a_bias_for_the_processor_stays_as_it_is() -> None:
    bias = padding_bias([3, 5], 7, LIKE)
    assert bias is not None
    assert aligned_bias(bias) is bias


@pytest.mark.gpu
@pytest.mark.parametrize("num_keys", [1, 7, 8, 100, 256])
def test_rows_of_a_bias_for_a_gpu_begin_at_multiples_of_eight(num_keys: int) -> None:
    bias = torch.randn(2, 3, 5, num_keys, device="cuda").half()
    aligned = aligned_bias(bias)
    assert torch.equal(aligned, bias)
    assert all(stride % 8 == 0 for stride in aligned.stride()[:-1])
    assert aligned.stride(-1) == 1
