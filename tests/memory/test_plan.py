import json
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from martlet.device.size import MIB
from martlet.errors import CapacityError
from martlet.memory.parts import aligned
from martlet.memory.plan import Bandwidth, BlockSize, Budget, Demand, Work, make_plan

sizes = st.integers(0, 1 << 36)


@st.composite
def models(draw):
    names = ["fixed"]
    names += [f"encoder.{i}" for i in range(draw(st.integers(0, 4)))]
    num_decoder_blocks = draw(st.integers(1, 6))
    names += [f"decoder.{i}" for i in range(num_decoder_blocks)]
    if draw(st.booleans()):
        names += [f"decoder.{i}.once" for i in range(num_decoder_blocks)]
    return [BlockSize(name, draw(sizes)) for name in names]


@st.composite
def uniform_models(draw):
    """As real ones are: all blocks of a stack have the same size."""
    num_encoder_blocks, num_decoder_blocks = draw(st.integers(0, 6)), draw(st.integers(1, 7))
    encoder_bytes, decoder_bytes, once_bytes = draw(st.tuples(*[st.integers(1, 1 << 30)] * 3))
    blocks = [BlockSize("fixed", draw(st.integers(0, 1 << 30)))]
    blocks += [BlockSize(f"encoder.{i}", encoder_bytes) for i in range(num_encoder_blocks)]
    for i in range(num_decoder_blocks):
        blocks.append(BlockSize(f"decoder.{i}", decoder_bytes))
        if num_encoder_blocks:
            blocks.append(BlockSize(f"decoder.{i}.once", once_bytes))
    return blocks


devices = st.sampled_from(["cpu", "cuda"])
budgets = st.builds(Budget, sizes, sizes)
demands = st.builds(Demand, sizes, sizes, sizes)
RAM_FOR_ALL = 1 << 50
RATES = Bandwidth(
    gpu_bytes_per_second=3e12,
    pcie_bytes_per_second=5e10,
    ram_bytes_per_second=1e11,
    flops_per_second=5e14,
    block_seconds=1e-5,
)


def plan_or_none(blocks, gpu_bytes, ram_bytes=RAM_FOR_ALL, demand=None):
    try:
        return make_plan(blocks, "cuda", Budget(gpu_bytes, ram_bytes), demand or Demand())
    except CapacityError:
        return None


def all_bytes(blocks):
    return sum(aligned(block.nbytes) for block in blocks)


def missing_mib(error):
    return int(re.search(r"(\d+) MiB are missing", str(error))[1])


def plan_between(blocks, share):
    """The plan at a share of the way from the least memory that will do to enough for all."""
    try:
        return make_plan(blocks, "cuda", Budget(0, RAM_FOR_ALL))
    except CapacityError as error:
        least_bytes = missing_mib(error) * MIB
    gpu_bytes = least_bytes + round(share * max(0, all_bytes(blocks) - least_bytes))
    return make_plan(blocks, "cuda", Budget(gpu_bytes, RAM_FOR_ALL))


@given(models(), devices, budgets, demands)
def test_every_block_is_placed_once_in_every_phase_and_never_above_the_budget(
    blocks, device, budget, demand
):
    try:
        plan = make_plan(blocks, device, budget, demand)
    except CapacityError:
        return
    for phase in plan.phases:
        assert [p.block for p in phase.placements] == [b.name for b in blocks]
        assert [p.tier for p in phase.placements] == [p.tier for p in plan.phases[0].placements]
    for tier in ("gpu", "ram", "disk"):
        assert plan.total_bytes(tier) <= budget.of(tier)


@given(models(), devices, budgets, demands)
def test_the_missing_mebibytes_are_just_enough(blocks, device, budget, demand):
    def plan_with(extra_gpu_bytes, extra_ram_bytes):
        more = Budget(budget.gpu_bytes + extra_gpu_bytes, budget.ram_bytes + extra_ram_bytes)
        return make_plan(blocks, device, more, demand)

    extra = {"gpu": 0, "ram": 0}
    for _ in range(2):  # of one tier, then perhaps of the other
        try:
            plan_with(extra["gpu"], extra["ram"])
        except CapacityError as error:
            num_mib = missing_mib(error)
            tier = "gpu" if "of GPU memory" in str(error) else "ram"
        else:
            return
        assert extra[tier] == 0
        extra[tier] = (num_mib - 1) * MIB
        with pytest.raises(CapacityError, match=" 1 MiB are missing"):
            plan_with(extra["gpu"], extra["ram"])
        extra[tier] += MIB
    plan_with(extra["gpu"], extra["ram"])


@given(models(), st.integers(0, 1 << 38), st.integers(0, 1 << 36))
def test_more_gpu_memory_never_copies_more_for_a_token(blocks, gpu_bytes, more_bytes):
    little, much = plan_or_none(blocks, gpu_bytes), plan_or_none(blocks, gpu_bytes + more_bytes)
    assume(little is not None)
    copied = [
        tuple(plan.streamed_bytes(phase.phase) for phase in reversed(plan.phases))
        for plan in (little, much)
    ]
    # Decode first, then prefill, then encode: what comes first is never paid with.
    assert copied[1] <= copied[0]


@given(uniform_models(), st.floats(0, 1), st.floats(0, 1))
def test_more_gpu_memory_is_never_slower(blocks, first, second):
    work = Work(prompt_tokens=7, encoder_tokens=256, fixed_decode_bytes=blocks[0].nbytes // 2)
    little, much = (
        plan_between(blocks, share).predicted(work, RATES) for share in sorted((first, second))
    )
    assert much.seconds_per_token <= little.seconds_per_token
    if len(little.phases) == 2:
        assert much.time_to_first_token_seconds <= little.time_to_first_token_seconds


@given(models(), st.floats(0, 1))
def test_slots_hold_what_is_in_them_at_once(blocks, share):
    plan = plan_between(blocks, share)
    assert (plan.num_slots > 0) == any(plan.streamed(phase.phase) for phase in plan.phases)
    nbytes = {block.name: aligned(block.nbytes) for block in blocks}
    for phase in plan.phases:
        names = plan.streamed(phase.phase)
        for name in names:
            together = nbytes[name]
            if f"{name}.once" in names:
                together += nbytes[f"{name}.once"]
            assert together <= plan.slot_bytes


@given(st.integers(3, 40), st.data())
def test_streamed_blocks_lie_evenly_and_begin_with_the_first(num_blocks, data):
    num_resident = data.draw(st.integers(0, num_blocks - 3))
    blocks = [BlockSize(f"decoder.{i}", MIB) for i in range(num_blocks)]
    plan = plan_or_none(blocks, (num_resident + 2) * MIB)
    indices = [int(name.split(".")[1]) for name in plan.streamed("decode")]
    assert len(indices) == num_blocks - num_resident
    assert indices[0] == 0
    gaps = [b - a for a, b in zip(indices, [*indices[1:], num_blocks], strict=True)]
    assert max(gaps) - min(gaps) <= 1  # around the end of the stack as well


@given(models(), demands)
def test_with_enough_memory_nothing_is_streamed_and_no_slot_is_reserved(blocks, demand):
    gpu_bytes = all_bytes(blocks) + demand.total_bytes
    plan = plan_or_none(blocks, gpu_bytes, 0, demand)
    assert (plan.num_slots, plan.slots_bytes) == (0, 0)
    assert plan.total_bytes("gpu") == gpu_bytes


def cpm2_blocks():
    """Sizes in the proportions of CPM-2: 24 blocks a stack, slightly rounded, int8."""
    blocks = [BlockSize("fixed", 208 * MIB)]
    blocks += [BlockSize(f"encoder.{i}", 184 * MIB) for i in range(24)]
    for i in range(24):
        blocks += [BlockSize(f"decoder.{i}", 216 * MIB), BlockSize(f"decoder.{i}.once", 32 * MIB)]
    return blocks


def test_memory_goes_to_decoder_blocks_then_to_what_prefill_reads_then_to_the_encoder():
    blocks = cpm2_blocks()
    slots_mib = 2 * (216 + 32)
    least = plan_or_none(blocks, (208 + slots_mib) * MIB)
    assert plan_or_none(blocks, (208 + slots_mib) * MIB - 1) is None
    assert len(least.streamed("decode")) == len(least.streamed("encode")) == 24
    one_more = plan_or_none(blocks, (208 + slots_mib + 216) * MIB)
    assert len(one_more.streamed("decode")) == 23
    assert len(one_more.streamed("encode")) == 24
    # Once no decoder block is streamed, a slot is as large as an encoder block.
    decoder = plan_or_none(blocks, (208 + 24 * (216 + 32) + 2 * 184) * MIB)
    assert decoder.streamed("prefill") == ()
    assert decoder.slot_bytes == 184 * MIB
    assert decoder.weight_bytes("ram") == 24 * 184 * MIB


def test_parts_are_streamed_in_the_order_in_which_they_run():
    blocks = [BlockSize("fixed", 0)]
    blocks += [BlockSize(f"decoder.{i}", MIB) for i in range(12)]
    blocks += [BlockSize(f"decoder.{i}.once", MIB) for i in range(12)]
    plan = plan_or_none(blocks, 4 * MIB)
    assert plan.streamed("decode") == tuple(f"decoder.{i}" for i in range(12))
    assert plan.streamed("prefill")[2:6] == (
        "decoder.1",
        "decoder.1.once",
        "decoder.2",
        "decoder.2.once",
    )
    assert plan.streamed_bytes("prefill") == 2 * plan.streamed_bytes("decode") == 24 * MIB


def test_what_waits_in_ram_must_fit_there():
    def plan(gpu_bytes, ram_bytes):
        return make_plan(cpm2_blocks(), "cuda", Budget(gpu_bytes, ram_bytes))

    with pytest.raises(CapacityError, match=r"GiB of weights .* wait in RAM.* --ram") as caught:
        plan(3 << 30, 1 << 30)
    more_ram_bytes = missing_mib(caught.value) * MIB
    more_gpu_bytes = int(re.search(r"(\d+) MiB more --gpu", str(caught.value))[1]) * MIB
    plan(3 << 30, (1 << 30) + more_ram_bytes)
    plan((3 << 30) + more_gpu_bytes, 1 << 30)
    for gpu_bytes, ram_bytes in ((0, more_ram_bytes - MIB), (more_gpu_bytes - MIB, 0)):
        with pytest.raises(CapacityError):
            plan((3 << 30) + gpu_bytes, (1 << 30) + ram_bytes)


def test_too_little_gpu_memory_names_every_amount():
    with pytest.raises(CapacityError) as caught:
        make_plan(
            cpm2_blocks(),
            "cuda",
            Budget(1 << 30, RAM_FOR_ALL),
            Demand(30 * MIB, 64 * MIB, 400 * MIB),
        )
    for part in (
        "at least 1.2 GiB of GPU memory",
        "driver context and kernels 400.0 MiB",
        "norms and head 208.0 MiB",
        "2 slots for streamed blocks 496.0 MiB",
        "KV cache 30.0 MiB",
        "workspace 64.0 MiB",
        "1.0 GiB may be used: 174 MiB are missing",
    ):
        assert part in str(caught.value)


def test_a_part_may_name_the_phases_that_read_it():
    block = BlockSize("decoder.0", MIB, frozenset(("prefill",)))
    plan = make_plan([block], "cuda", PLENTY)
    assert [phase.placements[0].computed_on for phase in plan.phases] == ["gpu", None]


BLOCKS = [
    BlockSize("fixed", 10 * MIB),
    BlockSize("encoder.0", 2 * MIB),
    BlockSize("decoder.0", MIB),
]
PLENTY = Budget(1 << 40, 1 << 40)


def test_a_block_is_computed_only_in_the_phases_of_its_stack():
    plan = make_plan(BLOCKS, "cpu", PLENTY)
    computed = {
        phase.phase: [p.block for p in phase.placements if p.computed_on] for phase in plan.phases
    }
    assert computed == {
        "encode": ["fixed", "encoder.0"],
        "prefill": ["fixed", "decoder.0"],
        "decode": ["fixed", "decoder.0"],
    }


def test_a_decoder_only_model_has_no_phase_of_encoding():
    plan = make_plan([BLOCKS[0], BLOCKS[2]], "cpu", PLENTY)
    assert [phase.phase for phase in plan.phases] == ["prefill", "decode"]


def test_the_line_for_people_says_where_and_with_what():
    assert make_plan(BLOCKS, "cpu", PLENTY, num_threads=2, decode_threads=2).describe() == (
        "all 3 blocks, 13.0 MiB, in RAM; computed on the CPU with 2 threads"
    )
    assert make_plan(BLOCKS, "cuda", PLENTY).describe() == (
        "all 3 blocks, 13.0 MiB, in GPU memory; computed on the GPU"
    )


def test_single_tokens_of_a_small_model_are_computed_by_one_thread_unless_asked_otherwise():
    small = make_plan(BLOCKS, "cpu", PLENTY, num_threads=8)
    large = make_plan([BlockSize("fixed", 64 * MIB)], "cpu", PLENTY, num_threads=8)
    asked = make_plan(BLOCKS, "cpu", PLENTY, num_threads=8, decode_threads=8)
    assert [(p.num_threads, p.decode_threads) for p in (small, large, asked)] == [
        (8, 1),
        (8, 8),
        (8, 8),
    ]


def test_the_error_says_needed_available_missing_and_what_to_do():
    with pytest.raises(CapacityError) as caught:
        make_plan(BLOCKS, "cuda", Budget(12 * MIB, 0), Demand(3 * MIB, MIB))
    message = str(caught.value)
    for part in ("17.0 MiB of GPU memory", "12.0 MiB may be used", "5 MiB are missing"):
        assert part in message
    assert "--device cpu" in message
    assert "--gpu-memory" in message


def messages_of(blocks):
    """What is said where a model does not fit into RAM, into the GPU, and into what streams."""
    small = Budget(12 * MIB, 0)
    errors = []
    for device, budget in (("cpu", small), ("cuda", small), ("cuda", Budget(13 * MIB + 1024, 1))):
        with pytest.raises(CapacityError) as caught:
            make_plan(blocks, device, budget, Demand(3 * MIB if budget is small else 0))
        errors.append(str(caught.value))
    return errors


def test_the_error_names_the_narrowest_format_unless_it_is_in_use():
    decoders = [BlockSize(f"decoder.{i}", MIB) for i in range(5)]
    wide = messages_of([BLOCKS[0], *decoders])
    assert all("--quantize int4" in message for message in wide)
    assert "wait in RAM" in wide[2]
    narrow = messages_of([replace(block, has_int4=True) for block in (BLOCKS[0], *decoders)])
    assert not any("--quantize" in message for message in narrow)
    assert [message.replace("--quantize int4, ", "") for message in wide] == narrow


def test_cache_and_workspace_count_only_where_the_computing_is():
    plan = make_plan(BLOCKS, "cuda", Budget(20 * MIB, 0), Demand(3 * MIB, MIB))
    assert plan.total_bytes("gpu") == 17 * MIB
    assert plan.total_bytes("ram") == 0


def test_the_plan_as_a_dict_is_json():
    value = make_plan(BLOCKS, "cpu", PLENTY, Demand(5, 6)).to_dict()
    assert json.loads(json.dumps(value)) == value
    assert value["total_bytes"]["ram"] == 13 * MIB + 11
    assert value["phases"]["encode"][2] == {
        "block": "decoder.0",
        "nbytes": MIB,
        "tier": "ram",
        "computed_on": None,
    }
