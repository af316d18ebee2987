"""The executor of a GPU hands out what the source holds, whatever stays and whatever is streamed.

Weights are bytes drawn from the name of their part, so that any byte that comes from another block,
too early or too late, shows. Decoder blocks have 5 MB: a copy takes longer than a launch.
"""

import functools
import gc
import logging
import zlib
from dataclasses import replace

import pytest
import torch

from martlet.device.host import HostBuffer
from martlet.engine.parts import lay_out_parts
from martlet.errors import CapacityError
from martlet.memory.layout import view_part
from martlet.memory.plan import BlockSize, Budget, Demand, make_plan
from martlet.memory.streamed import StreamedExecutor, load_streamed
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.scheme import TiledTensor

T5 = {
    "model_type": "t5",
    "vocab_size": 1000,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 4,
    "num_decoder_layers": 5,
    "num_heads": 8,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 1000,
    "n_positions": 64,
    "n_embd": 512,
    "n_layer": 6,
    "n_head": 8,
}
CONFIGS = {"t5": T5, "gpt2": GPT2, "gpt2-int4": GPT2}
FORMATS = {"t5": INT8, "gpt2": INT8, "gpt2-int4": WeightFormat(4, 64, has_zeros=True)}
CUDA = torch.device("cuda")
AMPLE = Budget(1 << 40, 1 << 40)
# Prefill and encoding use the slots in between, which steps have to notice.
PASSES = (
    "encode",
    "prefill",
    "decode",
    "decode",
    "decode",
    "prefill",
    "decode",
    "encode",
    "decode",
)
_LAG_CYCLES = 1_000_000  # about half a millisecond, several copies


class NamedBytes:
    """A source whose parts hold bytes drawn from their names, the same wherever they are put."""

    def fill(self, layout, out):
        out.copy_(part_bytes(layout))


class ShortOfMemory(NamedBytes):
    """Runs out of the GPU's memory while the first so many executors are filled."""

    def __init__(self, num_failures):
        self.num_failures = num_failures

    def fill(self, layout, out):
        if self.num_failures and layout.name == "decoder.2":
            self.num_failures -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().fill(layout, out)


@functools.cache
def part_bytes(layout):
    random = torch.Generator().manual_seed(zlib.crc32(layout.name.encode()))
    return torch.randint(0, 256, (layout.nbytes,), dtype=torch.uint8, generator=random)


@functools.cache
def parts_of(model):
    specs = load_architecture(CONFIGS[model]).block_specs()
    format = FORMATS[model]
    return lay_out_parts(specs, lambda _, t: None if t.kind == "other" else format, torch.float16)


@functools.cache
def plans_of(model):
    """Every plan that some budget brings, by the number of parts that each phase streams."""
    parts = parts_of(model).values()
    blocks = [BlockSize(part.name, part.nbytes) for part in parts]
    step_bytes = min(part.nbytes for part in parts) // 2
    budget_bytes = sum(part.nbytes for part in parts)
    plans = {}
    while True:
        try:
            plan = make_plan(blocks, "cuda", Budget(budget_bytes, 1 << 40))
        except CapacityError:
            return plans
        counts = (f"{phase.phase} {len(plan.streamed(phase.phase))}" for phase in plan.phases)
        # The budget of a few MiB has served: it would hold this process to it, and what is compared
        # takes more.
        plans.setdefault(", ".join(counts), replace(plan, budget=AMPLE))
        budget_bytes -= step_bytes


def of_every_plan(test):
    cases = [(model, name) for model in CONFIGS for name in plans_of(model)]
    return pytest.mark.parametrize(("model", "plan_name"), cases)(test)


def smallest(model):
    """The plan that keeps the least in the GPU's memory."""
    return list(plans_of(model).values())[-1]


def resident(model):
    """A plan that keeps all weights, where a tenth less of the memory does not hold them all."""
    parts = parts_of(model).values()
    # Room for what the allocator rounds up, and for what it still holds of other tests.
    demand = Demand(workspace_bytes=5 * sum(part.nbytes for part in parts))
    budget = Budget(demand.total_bytes + sum(part.nbytes for part in parts), 1 << 40)
    return make_plan([BlockSize(part.name, part.nbytes) for part in parts], "cuda", budget, demand)


@pytest.fixture
def own_limit():
    """What a test does to torch's allocator ends with it, and what others left there is gone."""
    gc.collect()
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def executor_for(model, plan):
    return StreamedExecutor(plan, parts_of(model), NamedBytes(), CUDA, torch.float16)


def raw(weights):
    """The bytes of weights by name, copied by the stream that computes."""
    copies = {}
    for name, weight in weights.items():
        tensors = [weight]
        if isinstance(weight, TiledTensor):
            groups = [] if weight.groups is None else [weight.groups]
            tensors = [weight.data, weight.scale, *groups]
        copies[name] = torch.cat([t.reshape(-1).view(torch.uint8) for t in tensors])
    return copies


@functools.cache
def wanted(model, phase):
    """What the source holds for a phase: each block's index and bytes."""
    parts = parts_of(model)
    stack = "encoder" if phase == "encode" else "decoder"
    blocks = []
    for spec in load_architecture(CONFIGS[model]).block_specs():
        if spec.name.partition(".")[0] != stack:
            continue
        names = [spec.name]
        if phase == "prefill" and spec.name + ".once" in parts:
            names.append(spec.name + ".once")
        weights = {}
        for name in names:
            weights.update(raw(view_part(parts[name], part_bytes(parts[name]))))
        blocks.append((int(spec.name.partition(".")[2]), weights))
    return blocks


def handed_out(executor, phase, lag_cycles=0):
    """What the GPU sees of each block of a phase; with a lag, long after the host has gone on."""
    blocks = []
    for index, weights in executor.blocks(phase):
        if lag_cycles:
            torch.cuda._sleep(lag_cycles)
        blocks.append((index, raw(weights)))
    return blocks


def assert_same(seen, expected, what):
    assert [index for index, _ in seen] == [index for index, _ in expected], what
    for (index, ours), (_, theirs) in zip(seen, expected, strict=True):
        assert ours.keys() == theirs.keys(), (what, index)
        for name, value in ours.items():
            assert torch.equal(value.cpu(), theirs[name]), (what, index, name)


def assert_all_passes_are_right(executor, model, lag_cycles=0):
    phases = [p for p in PASSES if p != "encode" or model == "t5"]
    # Compared when all have been launched: a comparison would let the GPU catch up.
    passes = [handed_out(executor, phase, lag_cycles) for phase in phases]
    for number, (phase, seen) in enumerate(zip(phases, passes, strict=True)):
        assert_same(seen, wanted(model, phase), f"pass {number}, {phase}")


def tensor_bytes():
    """Bytes that torch has been asked for on the GPU, without what its allocator rounds up."""
    return torch.cuda.memory_stats().get("requested_bytes.all.current", 0)


def num_streamed(model, phase):
    return {len(plan.streamed(phase)) for plan in plans_of(model).values()}


def test_the_budgets_below_bring_even_and_odd_numbers_of_streamed_blocks():
    assert num_streamed("t5", "encode") == {0, 3, 4}
    assert num_streamed("t5", "prefill") == set(range(11))
    assert num_streamed("t5", "decode") == {0, 1, 2, 3, 4, 5}
    # One block less in memory does not pay for two slots.
    assert num_streamed("gpt2", "decode") == {0, 3, 4, 5, 6}


@pytest.mark.gpu
@pytest.mark.parametrize("lag_cycles", [0, _LAG_CYCLES], ids=["at once", "late"])
@of_every_plan
def test_every_block_that_is_handed_out_is_that_of_the_source(model, plan_name, lag_cycles):
    executor = executor_for(model, plans_of(model)[plan_name])
    assert executor.is_capturable
    assert_all_passes_are_right(executor, model, lag_cycles)


@pytest.mark.gpu
@of_every_plan
def test_a_captured_step_sees_the_right_blocks_whenever_it_is_launched(model, plan_name):
    executor = executor_for(model, plans_of(model)[plan_name])
    handed_out(executor, "decode")
    executor.prime()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = handed_out(executor, "decode", _LAG_CYCLES)
    for before in (None, None, "prefill"):
        if before is not None:
            handed_out(executor, before)
        executor.prime()
        for _, weights in seen:
            for copied in weights.values():
                copied.zero_()
        graph.replay()
        assert_same(seen, wanted(model, "decode"), f"after {before}")


@pytest.mark.gpu
@pytest.mark.parametrize("model", CONFIGS)
def test_a_pass_that_is_given_up_spoils_none_that_follows(model):
    executor = executor_for(model, smallest(model))
    for phase in ("decode", "prefill", "decode"):
        blocks = executor.blocks(phase)
        next(blocks)
        next(blocks)
        blocks.close()
        assert_same(handed_out(executor, "decode"), wanted(model, "decode"), phase)


@pytest.mark.gpu
@pytest.mark.parametrize("model", CONFIGS)
def test_weights_of_no_layer_are_there_all_the_time(model):
    for plan in plans_of(model).values():
        executor = executor_for(model, plan)
        fixed = parts_of(model)["fixed"]
        theirs = raw(view_part(fixed, part_bytes(fixed)))
        ours = raw(executor.fixed())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name].cpu(), theirs[name]) for name in ours)


@pytest.mark.gpu
@pytest.mark.parametrize("model", CONFIGS)
def test_tensors_take_what_the_plan_says(model):
    for plan in plans_of(model).values():
        before_bytes = tensor_bytes()
        executor = executor_for(model, plan)
        assert tensor_bytes() - before_bytes == plan.total_bytes("gpu")
        del executor
        assert tensor_bytes() == before_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("num_refused", ["all", "every second"])
@pytest.mark.parametrize("model", CONFIGS)
def test_memory_that_cannot_be_locked_is_streamed_too_and_said_once(
    model, num_refused, monkeypatch, caplog
):
    lock, asked = HostBuffer.lock, []

    def refuse(buffer):
        asked.append(buffer)
        return num_refused != "all" and len(asked) % 2 == 0 and lock(buffer)

    monkeypatch.setattr(HostBuffer, "lock", refuse)
    with caplog.at_level(logging.WARNING):
        executor = executor_for(model, smallest(model))
    assert not executor.is_capturable
    (record,) = caplog.records
    refused = len(asked) if num_refused == "all" else -(-len(asked) // 2)
    assert f"{refused} parts of the weights could not be page-locked" in record.getMessage()
    assert_all_passes_are_right(executor, model)
    assert_all_passes_are_right(executor, model, _LAG_CYCLES)


def test_a_tenth_less_of_the_memory_means_streaming():
    for model in CONFIGS:
        plan = resident(model)
        assert plan.num_slots == 0
        less = replace(plan.budget, gpu_bytes=plan.budget.gpu_bytes * 9 // 10)
        blocks = [BlockSize(part.name, part.nbytes) for part in parts_of(model).values()]
        assert make_plan(blocks, "cuda", less, plan.demand).num_slots == 2


@pytest.mark.gpu
@pytest.mark.parametrize("model", CONFIGS)
def test_where_memory_is_short_of_the_plan_more_is_streamed(model, own_limit, caplog):
    plan, source = resident(model), ShortOfMemory(1)
    with caplog.at_level(logging.WARNING):
        executor = load_streamed(plan, parts_of(model), source, CUDA, torch.float16)
    assert executor.plan.num_slots == 2
    assert executor.plan.budget.gpu_bytes < plan.budget.gpu_bytes
    (record,) = caplog.records
    assert "trying again with" in record.getMessage()
    torch.cuda.set_per_process_memory_fraction(1.0)  # what it is compared with needs room too
    for phase in ("prefill", "decode"):
        assert_same(handed_out(executor, phase), wanted(model, phase), phase)


@pytest.mark.gpu
def test_where_memory_stays_short_loading_ends_with_an_error(own_limit):
    plan = replace(resident("t5"), budget=AMPLE)
    with pytest.raises(CapacityError, match="out of memory while loading weights"):
        load_streamed(plan, parts_of("t5"), ShortOfMemory(100), CUDA, torch.float16)
