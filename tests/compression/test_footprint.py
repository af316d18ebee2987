import pytest
import torch

from martlet.compression.compress_block import Method
from martlet.compression.footprint import footprint
from martlet.compression.walk import Sample
from martlet.models.config import load_architecture

GPU = torch.device("cuda")
CPM2_11B = {
    "model_type": "t5",
    "vocab_size": 26240,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
SAMPLES = [Sample((1,) * 256, (2,) * 512)] * 128


def _need(method="gptq", samples=SAMPLES):
    architecture = load_architecture(CPM2_11B)
    return footprint(architecture, samples, Method(method), GPU, torch.float16)


@pytest.mark.parametrize("method", ["nearest", "gptq", "scaled", "scaled+gptq"])
def test_eleven_billion_weights_are_compressed_in_six_and_sixteen_gib(method):
    need = _need(method)
    assert 1 << 30 < need.device_bytes < 5.5 * 2**30
    assert 1 << 30 < need.host_bytes < 8 * 2**30


def test_more_samples_take_main_memory_alone():
    few, many = _need(samples=SAMPLES[:64]), _need()
    assert few.device_bytes == many.device_bytes
    # Four hidden states of float16 for each of 64 samples of 512 tokens.
    assert many.host_bytes - few.host_bytes == 4 * 64 * 512 * 4096 * 2


def test_better_methods_take_more():
    nearest, gptq, scaled = (_need(m) for m in ("nearest", "gptq", "scaled+gptq"))
    assert nearest.device_bytes < gptq.device_bytes <= scaled.device_bytes
    assert nearest.host_bytes == gptq.host_bytes < scaled.host_bytes
