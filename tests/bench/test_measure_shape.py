import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from martlet.bench.measure_shape import default_protocol, measure_shape, workload_of
from martlet.bench.opening import Setting, open_shape
from martlet.bench.passes import Passes, Workload
from martlet.bench.shapes import SHAPES, Shape
from martlet.errors import CapacityError, UsageError

CPU = Setting(device="cpu")
SMALL = Workload(prompt_tokens=8, output_tokens=4, repetitions=2)
TINY = {
    "t5": Shape(
        "tiny-t5",
        "cpm2",
        {
            "model_type": "t5",
            "vocab_size": 640,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "gpt2": Shape(
        "tiny-gpt2",
        "cpm1",
        {
            "model_type": "gpt2",
            "vocab_size": 640,
            "n_positions": 16,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
        },
    ),
    "llama": Shape(
        "tiny-llama",
        "llama",
        {
            "model_type": "llama",
            "vocab_size": 640,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 16,
        },
    ),
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("quantize", "form"),
    [("int8", "int8"), ("none", "float32"), ("int4", "int4-g32"), ("int4-g64-asym",) * 2],
)
def test_every_kind_of_shape_is_measured_in_every_form(name, quantize, form):
    setting = Setting(device="cpu", quantize=quantize)
    record = measure_shape(TINY[name], setting, SMALL, "bminf", "martlet bench")
    assert record.shape == TINY[name].name
    assert record.quantize == form
    assert (record.encode_seconds is not None) == (name == "t5")
    assert record.decode_tokens_per_second > 0
    json.dumps(asdict(record), allow_nan=False)


def test_the_fields_of_a_record_follow_from_each_other():
    workload = Workload(prompt_tokens=8, output_tokens=4, repetitions=2, batch=3)
    record = measure_shape(TINY["t5"], CPU, workload, "bminf", "martlet bench --shape x")
    first = record.encode_seconds + record.prefill_seconds
    assert record.time_to_first_token_seconds == first
    assert record.prefill_tokens_per_second == 3 * 8 / first
    steps_per_second = record.decode_tokens_per_second / 3
    share = steps_per_second * record.weight_bytes_per_token / record.copy_ceiling_bytes_per_second
    assert record.share_of_limit == pytest.approx(share)
    assert (record.resident_blocks, record.streamed_blocks) == (2, 0)
    assert record.streamed_bytes_per_token == 0
    assert record.peak_gpu_process_bytes is None, "nothing ran on a GPU"
    assert (record.protocol, record.batch, record.peer) == ("bminf", 3, None)
    assert record.command == "martlet bench --shape x"


def test_all_rows_of_a_batch_do_the_work_of_one():
    workload = Workload(prompt_tokens=8, output_tokens=4, batch=3)
    architecture, executor = open_shape(TINY["llama"], CPU, workload)
    seen = []
    block = architecture.block

    def watched(stack, index, weights, hidden, step, cache):
        seen.append((index, tuple(hidden.shape[:2])))
        return block(stack, index, weights, hidden, step, cache)

    architecture.block = watched
    Passes(architecture, executor, workload).time(3)
    assert seen == [(0, (3, 8)), (1, (3, 8))] + 3 * [(0, (3, 1)), (1, (3, 1))]


def test_random_weights_keep_hidden_states_at_a_size_that_half_precision_holds():
    workload = Workload(prompt_tokens=8, output_tokens=2)
    for shape in TINY.values():
        architecture, executor = open_shape(shape, CPU, workload)
        sizes = []
        head = architecture.head

        def watched(fixed, stack, hidden, head=head, sizes=sizes):
            sizes.append(float(hidden.abs().max()))
            return head(fixed, stack, hidden)

        architecture.head = watched
        Passes(architecture, executor, workload).time(1)
        assert all(0.01 < size < 1000 for size in sizes), (shape.name, sizes)


def test_progress_counts_all_runs():
    steps = []
    measure_shape(TINY["gpt2"], CPU, SMALL, "bminf", "x", lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_protocols_give_the_lengths_that_are_not_given():
    assert workload_of("bminf", None, None, 3, 1) == Workload(256, 256, 3, 1)
    assert workload_of("bminf", None, None, 3, 1).decode_steps == 255
    assert workload_of("prefill512", None, None, 3, 8).decode_steps == 128
    assert workload_of("prefill512", 16, 2, 3, 1) == Workload(16, 2, 3, 1)


def test_shapes_with_an_encoder_are_measured_as_bminf_was():
    named = {name: default_protocol(shape) for name, shape in SHAPES.items()}
    assert named["cpm2-11b"] == named["eva"] == "bminf"
    assert named["cpm1"] == named["llama-8b"] == "prefill512"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_more_tokens_than_positions_are_refused(name):
    with pytest.raises(UsageError, match="context of 16"):
        open_shape(TINY[name], CPU, Workload(prompt_tokens=12, output_tokens=6))
    open_shape(TINY[name], CPU, Workload(prompt_tokens=12, output_tokens=5))


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="quantize is 'int3'; it must be none, int8, int4"):
        Setting(quantize="int3")


def test_too_little_memory_is_an_error_before_anything_is_made():
    with pytest.raises(CapacityError, match="MiB are missing"):
        open_shape(SHAPES["cpm2-11b"], Setting(device="cpu", ram_bytes=1 << 30), SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="no GPU"):
        open_shape(TINY["t5"], Setting(device="cuda"), SMALL)


def test_a_shape_needs_no_tokenizer():
    # So that it also runs on a machine that has not got their libraries.
    code = (
        "import sys\n"
        "for name in ('jieba', 'sentencepiece', 'tokenizers'):\n"
        "    sys.modules[name] = None\n"
        "from martlet.bench import measure_shape"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.gpu
def test_on_a_gpu_the_memory_of_the_process_is_recorded():
    record = measure_shape(TINY["t5"], Setting(device="cuda"), SMALL, "bminf", "martlet bench")
    assert record.peak_gpu_process_bytes > 1 << 20
    assert record.pcie_bytes_per_second > 1e8
    assert record.matrix_flop_per_second > 1e9
