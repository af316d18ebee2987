import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.device.size import MIB
from martlet.errors import CapacityError
from martlet.memory.plan import BlockSize, Budget, Demand, make_plan

sizes = st.integers(0, 1 << 36)


@st.composite
def models(draw):
    names = ["fixed"]
    names += [f"encoder.{i}" for i in range(draw(st.integers(0, 4)))]
    names += [f"decoder.{i}" for i in range(draw(st.integers(1, 6)))]
    return [BlockSize(name, draw(sizes)) for name in names]


devices = st.sampled_from(["cpu", "cuda"])
budgets = st.builds(Budget, sizes, sizes)
demands = st.builds(Demand, sizes, sizes)


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
    for tier in ("gpu", "ram", "disk"):
        assert plan.total_bytes(tier) <= budget.of(tier)


@given(models(), devices, budgets, demands)
def test_the_missing_mebibytes_are_just_enough(blocks, device, budget, demand):
    try:
        make_plan(blocks, device, budget, demand)
    except CapacityError as error:
        missing_mib = int(re.search(r"(\d+) MiB are missing", str(error))[1])
    else:
        return

    def plan_with(extra_bytes):
        return make_plan(
            blocks,
            device,
            Budget(budget.gpu_bytes + extra_bytes, budget.ram_bytes + extra_bytes),
            demand,
        )

    plan_with(missing_mib * MIB)
    with pytest.raises(CapacityError):
        plan_with((missing_mib - 1) * MIB)


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
