"""Decode steps equal passes, whatever kind of choice they make, on the CPU and on a GPU."""

from bisect import bisect_left
from dataclasses import replace

import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.engine.decode import DecodeLoop
from martlet.engine.folder_source import FolderSource
from martlet.engine.loaded_forms import LoadedForms
from martlet.engine.loaded_weights import LoadedWeights
from martlet.engine.model_files import StoreFiles
from martlet.engine.parts import lay_out_parts
from martlet.engine.request import SamplingParams
from martlet.engine.sampler import Sampler
from martlet.errors import CapacityError
from martlet.memory.executor import ResidentExecutor
from martlet.memory.plan import BlockSize, Budget, Demand, make_plan
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT4, INT8, WeightFormat
from martlet.quantization.scheme import tiled

CPU = torch.device("cpu")
# What says how many layers there are, by family.
FAMILIES = {
    "cpm1": ("n_layer",),
    "llama": ("num_hidden_layers",),
    "qwen3": ("num_hidden_layers",),
    "gemma3_text": ("num_hidden_layers",),
    "cpm2": ("num_layers", "num_decoder_layers"),
}
PROMPTS = [[3, 500, 700], [3, 500, 900], [8, 41, 7]]
ENCODER_IDS = [[5, 6, 7, 8], [11, 12, 13, 14], [9, 9, 2, 500]]
FORMATS = [INT8, INT4, WeightFormat(4, 64, has_zeros=True), WeightFormat(8, 32)]
NUM_STEPS = 12
NUM_LAYERS = 5  # two may pass through the slots of a GPU, and others stay


class _TiledExecutor(ResidentExecutor):
    """Integers in tiles, as on a GPU, and computed with as their definition says."""

    def _load(self, weight):
        return super()._load(weight) if isinstance(weight, torch.Tensor) else tiled(weight)


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("none") / "tokenizer.json"
    vocabulary.write_text("{}")  # nobody reads it here
    tokenizer = ("huggingface", {"t.json": vocabulary})
    return {
        family: make_model(
            family,
            config={"vocab_size": 1000, **dict.fromkeys(layers, NUM_LAYERS)},
            tokenizer=tokenizer,
        )
        for family, layers in FAMILIES.items()
    }


def _by_format(format):
    return pytest.mark.parametrize("format", format, ids=lambda f: f.name if f else "float")


def _on_cpu(folder, format, kv_cache="none"):
    store = open_store(folder)
    architecture = load_architecture(store.config)
    blocks = [BlockSize(name, store.block_nbytes(name)) for name in store.block_names]
    plan = make_plan(blocks, "cpu", Budget(0, 1 << 40), Demand(kv_cache=kv_cache))
    specs = architecture.block_specs()
    forms = LoadedForms(StoreFiles(store), specs, format and format.name)
    executor = _TiledExecutor(plan, LoadedWeights(forms, torch.float32), CPU, torch.float32)
    return architecture, executor


def _filled(architecture, executor, num_slots, max_tokens=32):
    """A cache that holds the prompts, and the most probable token behind each."""
    like = torch.empty(0, dtype=executor.dtype, device=executor.device)
    cache = architecture.new_cache(
        num_slots,
        max_tokens,
        like,
        16 * architecture.has_encoder,
        executor.plan.demand.kv_cache,
    )
    if architecture.has_encoder:
        hidden = _run(architecture, executor, None, ENCODER_IDS[:num_slots], "encode")
        hidden = architecture.head(executor.fixed(), "encoder", hidden)
        # The last one reads less than the others.
        cache.set_encoder_output(hidden, [4, 4, 2][:num_slots])
    hidden = _run(architecture, executor, cache, PROMPTS[:num_slots], "prefill")
    logits = architecture.head(executor.fixed(), "decoder", hidden[:, -1:])
    return cache, logits[:, 0].argmax(dim=-1).tolist()


def _run(architecture, executor, cache, rows, phase):
    stack = "encoder" if phase == "encode" else "decoder"
    token_ids = torch.tensor(rows, device=executor.device)
    hidden, step = architecture.embed(executor.fixed(), stack, token_ids, cache)
    for index, weights in executor.blocks(phase):
        hidden = architecture.block(stack, index, weights, hidden, step, cache)
    return hidden


def _logits_of_passes(architecture, executor, token_ids, num_slots):
    """Logits after each of ``token_ids`` (steps, slots), read one a pass."""
    cache, _ = _filled(architecture, executor, num_slots)
    rows = []
    for ids in token_ids:
        hidden = _run(architecture, executor, cache, [[i] for i in ids], "decode")
        rows.append(architecture.head(executor.fixed(), "decoder", hidden)[:, 0])
    return torch.stack(rows), cache


def _logits_of_steps(architecture, executor, token_ids, num_slots):
    cache, _ = _filled(architecture, executor, num_slots)
    loop = DecodeLoop(architecture, executor, cache, NUM_STEPS)
    loop.begin(token_ids[0], choice="none")
    rows = []
    for ids in token_ids:
        loop.feed(ids)
        loop.launch(1)
        rows.append(loop.logits())
    loop.end()
    return torch.stack(rows), cache


def _random_ids(num_slots):
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 1000, (NUM_STEPS, num_slots), generator=random).tolist()


@pytest.mark.parametrize("num_slots", [1, 3])
@_by_format([None, INT8, INT4])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_steps_give_the_logits_of_passes(folders, family, format, num_slots):
    model = _on_cpu(folders[family], format)
    token_ids = _random_ids(num_slots)
    expected, cache = _logits_of_passes(*model, token_ids, num_slots)
    logits, stepped = _logits_of_steps(*model, token_ids, num_slots)
    assert expected.std() > 0.3  # flat logits would let any mistake pass
    # float32 sums in another order, over a few layers
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert stepped.lengths == cache.lengths == (3 + NUM_STEPS,) * num_slots


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_steps_over_an_int8_cache_give_about_the_logits_of_passes(folders, family):
    model = _on_cpu(folders[family], INT8, "int8")
    token_ids = _random_ids(3)
    expected, cache = _logits_of_passes(*model, token_ids, 3)
    logits, stepped = _logits_of_steps(*model, token_ids, 3)
    exact, _ = _logits_of_passes(*_on_cpu(folders[family], INT8), token_ids, 3)
    # A component that lies between two integers may go to either; far less than what rounding
    # itself does.
    assert (logits - expected).norm() / expected.norm() < 1e-3
    assert 1e-4 < (expected - exact).norm() / exact.norm() < 0.02
    assert stepped.lengths == cache.lengths == (3 + NUM_STEPS,) * 3


def _tokens_of_loop(architecture, executor, num_slots, chances=(), suppressed=None, ending_ids=()):
    cache, first = _filled(architecture, executor, num_slots)
    loop = DecodeLoop(architecture, executor, cache, NUM_STEPS)
    kind = "sampled" if chances else "most_probable"
    loop.begin(first, suppressed, ending_ids, kind, chances)
    loop.launch(NUM_STEPS)
    chosen = loop.collect()
    loop.end()
    return first, chosen, cache


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_each_slot_chooses_its_most_probable_token(folders, family):
    model = _on_cpu(folders[family], INT8)
    first, chosen, cache = _tokens_of_loop(*model, 3)
    read = [first, *map(list, zip(*chosen, strict=True))][:-1]
    logits, _ = _logits_of_passes(*model, read, 3)
    assert logits.argmax(dim=-1).T.tolist() == chosen
    assert cache.lengths == (3 + NUM_STEPS,) * 3


@torch.inference_mode()
def test_a_slot_that_has_ended_keeps_its_length_and_the_others_go_on(folders):
    model = _on_cpu(folders["cpm1"], None)
    _, chosen, _ = _tokens_of_loop(*model, 3)
    ending = next(i for i in chosen[1] if i not in chosen[0] + chosen[2])
    _, again, cache = _tokens_of_loop(*model, 3, ending_ids=[ending])
    count = chosen[1].index(ending) + 1
    assert again == [chosen[0], chosen[1][:count], chosen[2]]
    assert cache.lengths == (3 + NUM_STEPS, 3 + count, 3 + NUM_STEPS)


@torch.inference_mode()
def test_a_suppressed_token_is_not_chosen(folders):
    model = _on_cpu(folders["cpm1"], None)
    _, chosen, _ = _tokens_of_loop(*model, 1)
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[chosen[0]] = True
    _, others, _ = _tokens_of_loop(*model, 1, suppressed=mask)
    assert not set(chosen[0]) & set(others[0])


@torch.inference_mode()
def test_slots_draw_by_their_own_settings(folders):
    model = _on_cpu(folders["cpm1"], None)
    params = [SamplingParams(temperature=t, seed=s) for t, s in ((0, 1), (1.5, 2), (1.5, 3))]
    chances = [Sampler(each, 1000).chances(NUM_STEPS) for each in params]
    _, most_probable, _ = _tokens_of_loop(*model, 3)
    first, chosen, _ = _tokens_of_loop(*model, 3, chances)
    assert chosen[0] == most_probable[0]
    for slot in (1, 2):
        sampler = Sampler(params[slot], 1000)
        read = [first, *map(list, zip(*chosen, strict=True))][:-1]
        logits, _ = _logits_of_passes(*model, read, 3)
        for row, token_id in zip(logits[:, slot], chosen[slot], strict=True):
            assert sampler.sample(row).token_id == token_id
            sampler.accept(token_id)


# Of what lies between the least memory that can be planned for and enough for everything.
SHARES = {"least": 0.0, "half": 0.5, "all": 1.0}
# Room for caches and activations beside the weights; the executor holds torch to the budget.
DEMAND = Demand(workspace_bytes=1 << 30)


def _parts(architecture, format=INT8):
    return lay_out_parts(
        architecture.block_specs(),
        lambda _, t: None if t.kind == "other" else format,
        torch.float16,
    )


def _gpu_plan(parts, share):
    sizes = [BlockSize(part.name, part.nbytes) for part in parts.values()]

    def plan(gpu_bytes):
        return make_plan(sizes, "cuda", Budget(gpu_bytes, 1 << 40), DEMAND)

    def is_feasible(gpu_bytes):
        try:
            plan(gpu_bytes)
        except CapacityError:
            return False
        return True

    limits = range(DEMAND.total_bytes, DEMAND.total_bytes + 2 * sum(s.nbytes for s in sizes), 256)
    least = limits[bisect_left(limits, True, key=is_feasible)]
    most = limits[
        bisect_left(limits, True, key=lambda n: is_feasible(n) and plan(n).num_slots == 0)
    ]
    return plan(int(least + share * (most - least)))


def _on_gpu(folder, share, format=INT8, kv_cache="none"):
    from martlet.memory.streamed import StreamedExecutor

    store = open_store(folder)
    architecture = load_architecture(store.config)
    parts = _parts(architecture, format)
    device = torch.device("cuda", torch.cuda.current_device())
    source = FolderSource(StoreFiles(store), architecture.block_specs(), device)
    plan = _gpu_plan(parts, share)
    plan = replace(plan, demand=replace(plan.demand, kv_cache=kv_cache))
    return architecture, StreamedExecutor(plan, parts, source, device, torch.float16)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_budgets_of_these_tests_stream_most_some_and_none(folders, family):
    parts = _parts(load_architecture(open_store(folders[family]).config))
    counts = [len(_gpu_plan(parts, share).streamed("decode")) for share in SHARES.values()]
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("num_slots", [1, 3])
@_by_format(FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_steps_on_a_gpu_give_the_same_bits_wherever_weights_live(
    folders, family, num_slots, format
):
    token_ids = _random_ids(num_slots)
    logits, tokens, drawn = [], [], []
    for share in SHARES.values():
        model = _on_gpu(folders[family], share, format)
        chances = [
            Sampler(SamplingParams(temperature=1.3, top_p=0.9, seed=slot), 1000).chances(NUM_STEPS)
            for slot in range(num_slots)
        ]
        logits.append(_logits_of_steps(*model, token_ids, num_slots)[0])
        tokens.append(_tokens_of_loop(*model, num_slots)[:2])
        drawn.append(_tokens_of_loop(*model, num_slots, chances)[1])
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert tokens[0] == tokens[1] == tokens[2]
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_an_int8_cache_is_the_same_wherever_weights_live_and_about_that_of_the_cpu(folders, family):
    token_ids = _random_ids(3)
    logits, tokens = [], []
    for share in SHARES.values():
        model = _on_gpu(folders[family], share, INT8, "int8")
        logits.append(_logits_of_steps(*model, token_ids, 3)[0])
        tokens.append(_tokens_of_loop(*model, 3)[:2])
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert tokens[0] == tokens[1] == tokens[2]
    expected, _ = _logits_of_passes(*_on_cpu(folders[family], INT8, "int8"), token_ids, 3)
    assert (logits[0].cpu() - expected).norm() / expected.norm() < 0.02


@pytest.mark.gpu
@_by_format(FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_steps_on_a_gpu_give_about_the_logits_of_the_cpu(folders, family, format):
    token_ids = _random_ids(2)
    logits, _ = _logits_of_steps(*_on_gpu(folders[family], 1.0, format), token_ids, 2)
    expected, _ = _logits_of_passes(*_on_cpu(folders[family], format), token_ids, 2)
    # float16 activations, and the same integers, over a few layers
    assert (logits.cpu() - expected).norm() / expected.norm() < 0.01


@pytest.mark.gpu
@torch.inference_mode()
def test_a_loop_can_be_used_again_and_changes_its_kind(folders):
    architecture, executor = _on_gpu(folders["cpm1"], 0.0)
    cache, first = _filled(architecture, executor, 1)
    loop = DecodeLoop(architecture, executor, cache, NUM_STEPS)
    params = SamplingParams(temperature=1.0, seed=4)
    runs = []
    for _ in range(3):
        run = []
        for kind in ("most_probable", "sampled", "none"):
            loop.begin(first, choice=kind, chances=[Sampler(params, 1000).chances(NUM_STEPS)])
            loop.launch(4)
            run.append([loop.read(number)[0] for number in range(4)])
            loop.end([3])  # as if nothing had been read
            assert cache.lengths == (3,)
        runs.append(run)
    assert runs[0] == runs[1] == runs[2]
