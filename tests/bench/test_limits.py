import pytest

from martlet.bench.limits import Ceilings, StepBytes, step_bytes
from martlet.memory.plan import BlockSize, Budget, make_plan
from martlet.models.config import load_architecture

T5 = {
    "model_type": "t5",
    "vocab_size": 640,
    "d_model": 128,
    "d_kv": 16,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}


def resident_plan(architecture):
    sizes = [BlockSize(block.name, 1) for block in architecture.block_specs()]
    return make_plan(sizes, "cpu", Budget(0, 1 << 30))


def test_a_decode_step_reads_decoder_and_head_but_neither_encoder_nor_cross_keys():
    architecture = load_architecture(T5)
    width, inner, ff = 128, 64, 256
    matrices = 4 * width * inner + 2 * width * inner + 3 * width * ff
    rows = 4 * inner + 3 * width + 2 * ff  # q k v q, o o wo, wi_0 wi_1
    step = step_bytes(architecture, resident_plan(architecture), "int8", 2)
    assert step.weights == 2 * (matrices + 4 * rows + 3 * width * 2) + 640 * width + 4 * 640
    assert step.streamed == 0
    floats = step_bytes(architecture, resident_plan(architecture), "none", 2)
    assert floats.weights == 2 * 2 * (matrices + 3 * width) + 2 * 640 * width


# Bytes of scales and zeros of a row of 64, 128 and 256 inputs.
@pytest.mark.parametrize(
    ("quantize", "groups_bytes"),
    [
        ("int4", {64: 4, 128: 8, 256: 16}),
        ("int4-g64-asym", {64: 4, 128: 8, 256: 16}),
        ("int4-g128", {64: 2, 128: 2, 256: 4}),
    ],
)
def test_groups_count_with_their_scales_and_zeros(quantize, groups_bytes):
    architecture = load_architecture(T5)
    # q k v q, o o, wi_0 wi_1, wo of two blocks, and the head
    layer = [*4 * [(64, 128)], *2 * [(128, 64)], *2 * [(256, 128)], (128, 256)]
    matrices = [*2 * layer, (640, 128)]
    wanted = sum(rows * (columns // 2 + groups_bytes[columns] + 4) for rows, columns in matrices)
    step = step_bytes(architecture, resident_plan(architecture), quantize, 2)
    assert step.weights == wanted + 2 * 3 * 128 * 2


def test_a_tied_table_counts_as_the_head():
    tied = load_architecture({**T5, "tie_word_embeddings": True})
    untied = load_architecture(T5)
    assert (
        step_bytes(tied, resident_plan(tied), "int8", 2).weights
        == step_bytes(untied, resident_plan(untied), "int8", 2).weights
    )


@pytest.mark.parametrize(
    ("weights", "streamed", "seconds"),
    [
        (1000, 0, 1.0),  # all resident: memory
        (1000, 200, 2.0),  # the link, while memory waits
        (1000, 50, 1.0),  # so little over the link that memory is slower
    ],
)
def test_the_limit_is_the_slower_of_memory_and_link(weights, streamed, seconds):
    ceilings = Ceilings(memory_bytes_per_second=1000, pcie_bytes_per_second=100)
    assert StepBytes(weights, streamed).limit_seconds(ceilings) == seconds
