import pytest
import torch

from martlet.bench.shapes import find_shape
from martlet.engine.demand import Lengths, estimate_demand
from martlet.models.config import load_architecture

H200, PASCAL = (9, 0), (6, 1)


@pytest.fixture(scope="module")
def cpm2():
    return load_architecture(find_shape("cpm2-11b").config)


@pytest.mark.parametrize("capability", [None, PASCAL, H200])
def test_the_cache_is_counted_as_the_model_makes_it(cpm2, capability):
    demand = estimate_demand(cpm2, Lengths(2, 256, 100, 256), torch.float16, capability)
    assert demand.kv_cache_bytes == cpm2.cache_bytes(2, 100, 256, torch.float16)


@pytest.mark.parametrize("capability", [None, PASCAL, H200])
def test_longer_passes_and_more_of_them_need_more(cpm2, capability):
    def workspace_bytes(batch, tokens):
        lengths = Lengths(batch, tokens, 64, tokens)
        return estimate_demand(cpm2, lengths, torch.float16, capability).workspace_bytes

    assert workspace_bytes(1, 256) < workspace_bytes(1, 512) < workspace_bytes(8, 512)


def test_a_pass_of_256_tokens_leaves_most_of_6_gib_to_weights(cpm2):
    demand = estimate_demand(cpm2, Lengths(1, 256, 256, 256), torch.float16, PASCAL)
    assert demand.total_bytes < 600 << 20


@pytest.mark.parametrize("capability", [None, H200])
def test_a_mask_that_all_heads_share_is_counted_once(capability):
    llama = load_architecture(find_shape("llama-8b").config)
    demand = estimate_demand(llama, Lengths(1, 4096, 4096, 0), torch.bfloat16, capability)
    # 32 heads with a bias each, in float32, would be 4 GiB.
    assert demand.workspace_bytes < 1 << 30
