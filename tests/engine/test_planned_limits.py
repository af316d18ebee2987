import pytest
import torch

import martlet
from martlet.api.loading import Card, plan_for_card
from martlet.api.opening import open_model
from martlet.bench.shapes import find_shape
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.load_options import LoadOptions
from martlet.engine.machine import GpuState
from martlet.engine.planned_limits import (
    AUTO_SLOTS,
    TextDemands,
    limits_to_try,
    plan_for_texts,
)
from martlet.errors import CapacityError, UsageError
from martlet.memory.plan import BlockSize, Budget, Demand, make_plan
from martlet.models.config import load_architecture
from martlet.quantization.kv_form import KV_FORMS

MIB = 1 << 20
BLOCKS = [
    BlockSize("fixed", 10 * MIB),
    *(BlockSize(f"{stack}.{i}", 10 * MIB) for stack in ("encoder", "decoder") for i in range(8)),
]


def _card(memory):
    return Card(memory, "150GB/s", "10GB/s", "4T")


@pytest.mark.parametrize("slots", [0, 257, -1, True, 1.5, "16", "many"])
def test_slots_out_of_range_are_refused_by_name(slots):
    with pytest.raises(UsageError, match=r"slots is .*from 1 to 256, or auto"):
        LoadOptions(slots=slots)


@pytest.mark.parametrize("context", [0, 7, (1 << 20) + 1, True, "512"])
def test_a_context_out_of_range_is_refused_by_name(context):
    with pytest.raises(UsageError, match=r"context is .*from 8 to 1048576 tokens"):
        LoadOptions(context=context)


@pytest.mark.parametrize(
    ("shape", "limit", "options", "expected"),
    [
        ("cpm1", None, {}, BatchLimits(1, 1024, None)),
        ("cpm1", None, {"slots": 5, "context": 100}, BatchLimits(5, 100, None)),
        ("cpm1", None, {"slots": 5, "context": 4096}, BatchLimits(5, 1024, None)),
        ("llama-8b", None, {"slots": 2}, BatchLimits(2, 4096, None)),
        ("llama-8b", None, {"slots": 2, "context": 8000}, BatchLimits(2, 8000, None)),
        ("cpm2-11b", 512, {"slots": 3, "context": 64}, BatchLimits(3, 64, 64)),
        ("cpm2-11b", 512, {"slots": 3, "context": 700}, BatchLimits(3, 700, 512)),
        ("cpm2-11b", None, {"slots": 3}, BatchLimits(3, 512, 512)),
        ("cpm2-11b", None, {"slots": 3, "context": 64}, BatchLimits(3, 64, 64)),
    ],
)
def test_a_slot_has_the_context_that_was_asked_for_up_to_the_models_own(
    shape, limit, options, expected
):
    architecture = load_architecture(find_shape(shape).config)
    assert limits_to_try(architecture, limit, LoadOptions(**options)) == (expected,)


def test_without_slots_the_plan_is_that_of_one_text(tiny_cpm2):
    demand = martlet.plan(tiny_cpm2, device="cpu").demand
    architecture = open_model(tiny_cpm2).architecture
    dtype = open_model(tiny_cpm2).plan(LoadOptions(device="cpu")).dtype
    assert demand.kv_cache_bytes == architecture.cache_bytes(1, 512, 64, dtype)
    assert (demand.num_texts, demand.text_tokens) == (1, 512)


def test_the_plan_pays_for_the_caches_of_all_slots(tiny_cpm1, tiny_cpm2):
    for folder, encoder_tokens in ((tiny_cpm1, 0), (tiny_cpm2, 40)):
        planned = open_model(folder).plan(LoadOptions(device="cpu", slots=7, context=40))
        architecture = open_model(folder).architecture
        assert planned.plan.demand.kv_cache_bytes == architecture.cache_bytes(
            7, 40, encoder_tokens, planned.dtype
        )
        assert planned.limits == BatchLimits(7, 40, encoder_tokens or None)


def test_an_int8_cache_leaves_room_for_more_texts(make_model):
    config = {"n_embd": 512, "n_head": 4, "n_layer": 8, "n_positions": 4096}
    folder = make_model("cpm1", config=config)
    options = {"slots": "auto", "context": 4096}
    plans = {
        form: plan_for_card(folder, _card("1200MiB"), kv_cache=form, **options) for form in KV_FORMS
    }
    demands = {form: plan.demand for form, plan in plans.items()}
    architecture = open_model(folder).architecture
    for form, demand in demands.items():
        assert demand.kv_cache == form == plans[form].to_dict()["kv_cache"]
        assert demand.kv_cache_bytes == architecture.cache_bytes(
            demand.num_texts, 4096, 0, torch.float16, form
        )
    assert demands["int8"].num_texts == 2 * demands["none"].num_texts
    # float16 against a byte for each component and two for a vector of 128
    assert demands["int8"].kv_cache_bytes * 256 == demands["none"].kv_cache_bytes * 260
    # A pass needs a layer's keys and values as floats.
    assert demands["int8"].workspace_bytes > demands["none"].workspace_bytes


@pytest.mark.parametrize("quantize", ["int3", "", 4, True])
def test_a_form_of_the_weights_that_there_is_not_is_refused(quantize):
    with pytest.raises(UsageError, match=r"quantize is .*; it must be none, int8, int4"):
        LoadOptions(quantize=quantize)


def test_a_form_of_the_cache_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="kv_cache is 'int4'; it must be none or int8"):
        LoadOptions(kv_cache="int4")


def test_a_loaded_model_tells_the_limits_that_were_planned(tiny_cpm1, tiny_cpm2):
    model = martlet.load(tiny_cpm2, device="cpu", slots=3, context=50)
    assert model.batch_limits == BatchLimits(3, 50, 50, 256)
    assert martlet.load(tiny_cpm1, device="cpu").batch_limits == BatchLimits(1, 64, None)
    assert martlet.load(tiny_cpm1, device="cpu", slots="auto").batch_limits.num_slots == 16


def test_the_logits_of_all_slots_are_counted(tiny_cpm1):
    def workspace_bytes(slots):
        return martlet.plan(tiny_cpm1, device="cpu", slots=slots).demand.workspace_bytes

    assert workspace_bytes(200) - workspace_bytes(100) >= 100 * 30000 * 4


def test_more_slots_never_leave_fewer_bytes_to_stream_on_a_card(make_model):
    folder = make_model(
        "cpm2",
        config={"d_model": 512, "d_ff": 1024, "d_kv": 64, "num_heads": 8, "num_layers": 4}
        | {"num_decoder_layers": 4},
    )

    def planned(memory, slots):
        return plan_for_card(folder, _card(memory), slots=slots, context=64)

    memory = planned("2GiB", 2).total_bytes("gpu")  # two slots fit beside all the weights
    plans = [planned(memory, slots) for slots in (1, 2, 4, 8, 16)]
    streamed = [plan.streamed_bytes("encode") + plan.streamed_bytes("decode") for plan in plans]
    assert streamed == sorted(streamed)
    assert streamed[1] == 0 < streamed[2] < streamed[4]


def test_a_card_that_is_not_here_is_planned_with_exactly_the_slots_asked_for(tiny_cpm2):
    demand = plan_for_card(tiny_cpm2, _card("2GiB"), slots=3, context=100).demand
    architecture = open_model(tiny_cpm2).architecture
    # The encoder's tokens are not rounded up.
    assert demand.kv_cache_bytes == architecture.cache_bytes(3, 100, 64, torch.float16)
    assert demand.context_bytes > 0


def _planned(memory_mib, slot_mib, workspace_mib=0):
    """The slots that auto chooses for 170 MiB of weights and caches of ``slot_mib`` a slot."""
    candidates = [BatchLimits(n, 512, None) for n in AUTO_SLOTS]
    budget = Budget(memory_mib * MIB, 10_000 * MIB)

    def demand_of(limits):
        return Demand(limits.num_slots * slot_mib * MIB, workspace_mib * MIB)

    _, limits = plan_for_texts(
        candidates,
        budget.gpu_bytes,
        demand_of,
        lambda demand: make_plan(BLOCKS, "cuda", budget, demand),
    )
    return limits.num_slots


@pytest.mark.parametrize(
    ("memory_mib", "slot_mib", "slots"),
    [
        (6400, 100, 16),  # exactly a quarter
        (6399, 100, 8),
        (1600, 100, 4),
        (400, 100, 1),
        (300, 100, 1),  # the last one may take more than a quarter
    ],
)
def test_auto_takes_the_most_slots_whose_caches_are_a_quarter_at_most(memory_mib, slot_mib, slots):
    assert _planned(memory_mib, slot_mib) == slots


def test_auto_takes_fewer_slots_where_the_model_would_not_fit_beside_them():
    # 16 MiB are a quarter of 64, but 30 are for what must be there and 20 for the workspace.
    assert _planned(64, 1, workspace_mib=20) == 8


def test_auto_fails_as_one_text_does_where_nothing_fits():
    with pytest.raises(CapacityError) as failure:
        _planned(20, 1)
    assert "--slots" not in str(failure.value)


def test_what_does_not_fit_says_that_fewer_slots_may(tiny_cpm1):
    with pytest.raises(CapacityError, match=r"less than 64 texts \(--slots\) of 50 tokens") as cpu:
        martlet.plan(tiny_cpm1, device="cpu", ram="70MiB", slots=64, context=50)
    assert "\n" not in str(cpu.value)
    with pytest.raises(CapacityError, match=r"less than 256 texts \(--slots\) of 64 tokens"):
        plan_for_card(tiny_cpm1, _card("550MiB"), slots=256)


@pytest.mark.parametrize(
    ("gpu_mib", "workspace_mib", "chunk_tokens"),
    [
        (400, 1, 256),  # everything stays on the card: long passes would keep others waiting
        (100, 1, 1024),
        (100, 30, 256),  # no memory for that
    ],
)
def test_passes_read_more_where_the_link_is_what_they_wait_for(
    gpu_mib, workspace_mib, chunk_tokens
):
    budget = Budget(gpu_mib * MIB, 10_000 * MIB)
    _, limits = plan_for_texts(
        [BatchLimits(4, 512, None)],
        budget.gpu_bytes,
        lambda limits: Demand(4 * MIB, workspace_mib * limits.chunk_tokens // 256 * MIB),
        lambda demand: make_plan(BLOCKS, "cuda", budget, demand),
        streamed_chunk_tokens=1024,
    )
    assert limits.chunk_tokens == chunk_tokens


@pytest.mark.parametrize(("capability", "chunk_tokens"), [((6, 1), 256), ((7, 5), 1024)])
def test_a_card_without_matrix_units_reads_prompts_in_smaller_pieces(capability, chunk_tokens):
    state = GpuState(400 * MIB, 6 << 30, capability)
    architecture = load_architecture(find_shape("cpm1").config)
    demands = TextDemands(architecture, LoadOptions(slots=4), torch.float16, state)
    assert demands.streamed_chunk_tokens == chunk_tokens
