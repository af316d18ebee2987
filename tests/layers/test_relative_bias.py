import math

import pytest
import torch

from martlet.layers.relative_bias import RelativeBuckets, relative_bias

T5_ENCODER = RelativeBuckets(32, 128, is_bidirectional=True)
T5_DECODER = RelativeBuckets(32, 128, is_bidirectional=False)


def test_buckets_of_the_published_setting() -> None:
    # By hand from the paper's rule: 8 exact buckets a direction, the rest logarithmic up to 128.
    relative = torch.tensor([0, -1, -7, -8, -11, -12, -127, -128, -5000, 1, 7, 8, 127, 5000])
    expected = [0, 1, 7, 8, 8, 9, 15, 15, 15, 17, 23, 24, 31, 31]
    assert T5_ENCODER.bucket(relative).tolist() == expected


def test_buckets_of_a_causal_stack_use_all_for_the_past() -> None:
    relative = torch.tensor([5, 1, 0, -1, -15, -16, -17, -127, -128, -9999])
    assert T5_DECODER.bucket(relative).tolist() == [0, 0, 0, 1, 15, 16, 16, 31, 31, 31]


@pytest.mark.parametrize("buckets", [T5_ENCODER, T5_DECODER, RelativeBuckets(9, 21, True)], ids=str)
@pytest.mark.parametrize(
    ("starts", "num_queries", "num_keys"),
    [([0], 1, 1), ([0], 6, 6), ([40], 1, 41), ([0, 33, 7], 3, 36), ([300], 2, 302), ([5, 5], 2, 7)],
)
def test_every_entry_is_the_bucket_of_its_distance(
    buckets: RelativeBuckets, starts: list[int], num_queries: int, num_keys: int
) -> None:
    table = torch.arange(buckets.num_buckets * 2.0).view(-1, 2)
    bias = relative_bias(table, buckets, starts, num_queries, num_keys)
    assert bias.shape == (len(set(starts)), 2, num_queries, num_keys)
    for row, start in enumerate(dict.fromkeys(starts)):
        for query in range(num_queries):
            relative = torch.arange(num_keys) - (start + query)
            assert torch.equal(bias[row, :, query], table[buckets.bucket(relative)].T)


def test_buckets_never_decrease_with_the_distance() -> None:
    bucket = T5_DECODER.bucket(-torch.arange(2000))
    assert (bucket.diff() >= 0).all()
    assert bucket.unique().numel() == 32
    # Half way on the logarithmic scale between 16 and 128 stands half of the 16 far buckets.
    assert bucket[math.ceil(16 * math.sqrt(8))] == 24
