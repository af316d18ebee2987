from dataclasses import replace

import pytest

from martlet.memory.plan import Bandwidth, BlockSize, Budget, Work, make_plan

# Rates and sizes of the measured prototype: 24 decoder blocks of CPM-2, matrix products only.
RATES = Bandwidth(
    gpu_bytes_per_second=2.72e12,
    pcie_bytes_per_second=55.2e9,
    ram_bytes_per_second=1e11,
    flops_per_second=5e14,
    block_seconds=0,
)
BLOCK_BYTES = 226_500_000


def decoder_plan(num_resident):
    blocks = [BlockSize(f"decoder.{i}", BLOCK_BYTES) for i in range(24)]
    room = 24 if num_resident == 24 else num_resident + 2  # two slots
    aligned_bytes = BLOCK_BYTES + 256
    plan = make_plan(blocks, "cuda", Budget(room * aligned_bytes, 1 << 40))
    assert len(plan.streamed("decode")) == 24 - num_resident
    return plan


@pytest.mark.parametrize(
    ("num_resident", "milliseconds"), [(24, 2.0), (21, 12.66), (18, 24.9), (12, 49.3), (0, 98.7)]
)
def test_the_prediction_is_what_a_prototype_took(num_resident, milliseconds):
    predicted = decoder_plan(num_resident).predicted(Work(), RATES)
    assert predicted.seconds_per_token * 1e3 == pytest.approx(milliseconds, rel=0.03)


def test_a_step_reads_the_head_and_pays_for_each_block():
    plan = decoder_plan(24)
    bare = plan.predicted(Work(), RATES).seconds_per_token
    full = plan.predicted(Work(fixed_decode_bytes=272_000_000), replace(RATES, block_seconds=1e-5))
    assert full.seconds_per_token == pytest.approx(bare + 1e-4 + 24e-5)


def seq2seq_plan(gpu_bytes):
    blocks = [BlockSize("fixed", 1000)]
    blocks += [BlockSize(f"encoder.{i}", 1_000_000) for i in range(4)]
    for i in range(4):
        blocks += [BlockSize(f"decoder.{i}", 2_000_000), BlockSize(f"decoder.{i}.once", 500_000)]
    return make_plan(blocks, "cuda", Budget(gpu_bytes, 1 << 40))


def test_the_first_token_waits_for_the_slower_of_copying_and_arithmetic():
    work = Work(prompt_tokens=1, encoder_tokens=100)
    # Slow link: 4 MB for the encoder, 10 MB for the decoder.
    slow_link = Bandwidth(1e15, 1e6, 1e9, 1e18)
    plan = seq2seq_plan(5_100_000)  # two slots and nothing more
    assert plan.predicted(work, slow_link).time_to_first_token_seconds == pytest.approx(
        14, rel=0.01
    )
    # Slow arithmetic: the encoder and the cross-attention of the decoder take all 100 tokens.
    slow_matrix = Bandwidth(1e15, 1e15, 1e9, 1e9)
    flops = 2 * (4_000_000 * 100 + 2_000_000 * 100 + 8_000_000)
    for gpu_bytes in (5_100_000, 1 << 30):
        seconds = seq2seq_plan(gpu_bytes).predicted(work, slow_matrix).time_to_first_token_seconds
        assert seconds == pytest.approx(flops / 1e9, rel=0.01)
    half = replace(work, bytes_per_weight=2)
    seconds = plan.predicted(half, slow_matrix).time_to_first_token_seconds
    assert seconds == pytest.approx(flops / 2e9, rel=0.01)


def test_what_needs_an_unknown_rate_is_not_predicted():
    streamed, resident = seq2seq_plan(5_100_000), seq2seq_plan(1 << 30)
    no_link = replace(RATES, pcie_bytes_per_second=None)
    assert streamed.predicted(Work(), no_link).seconds_per_token is None
    assert resident.predicted(Work(), no_link).seconds_per_token is not None
    no_matrix = replace(RATES, flops_per_second=None)
    assert streamed.predicted(Work(), no_matrix).time_to_first_token_seconds is None
    assert streamed.predicted(Work(), no_matrix).seconds_per_token is not None
    assert streamed.seconds_per_token is None


def test_the_cpu_reads_its_weights_from_ram():
    blocks = [BlockSize("fixed", 999), BlockSize("decoder.0", 3_000_000)]
    plan = make_plan(blocks, "cpu", Budget(0, 1 << 30))
    predicted = plan.predicted(Work(fixed_decode_bytes=1_000_000), RATES)
    assert predicted.seconds_per_token == pytest.approx(4e6 / 1e11)
    assert predicted.time_to_first_token_seconds is None
