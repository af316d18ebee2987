import json

import pytest
import torch

from martlet.bench.measure import Workload, decode_step_bytes, measure
from martlet.bench.record import checkout_commit, write_records
from martlet.engine.load_options import LoadOptions
from martlet.errors import ModelNotFoundError, UsageError
from martlet.quantization.scheme import QuantizedTensor

CPU = LoadOptions(device="cpu")
SMALL = Workload(prompt_tokens=8, output_tokens=4, repetitions=2)


@pytest.fixture(scope="module")
def record(tiny_cpm1):
    return measure(str(tiny_cpm1), CPU, SMALL, "martlet bench")


def test_a_record_has_every_field_of_the_benchmark_schema(record, tmp_path):
    write_records(tmp_path / "results/rows.json", [record])
    (row,) = json.loads((tmp_path / "results/rows.json").read_text(encoding="utf-8"))
    assert set(row) >= {
        "shape", "quantize", "device", "torch", "commit", "command", "gpu_memory_budget_bytes",
        "decode_tokens_per_second", "prefill_tokens_per_second", "weight_bytes_per_token",
        "copy_ceiling_bytes_per_second", "pcie_bytes_per_second", "streamed_bytes_per_token",
        "share_of_limit", "peak_process_bytes", "peer",
    }  # fmt: skip
    assert row["peer"] is None
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["rows.json"]


def test_the_share_of_the_limit_follows_from_the_other_fields(record):
    expected = record.decode_tokens_per_second * record.weight_bytes_per_token
    assert record.share_of_limit == expected / record.copy_ceiling_bytes_per_second
    assert record.prefill_tokens_per_second == 8 / record.time_to_first_token_seconds


def test_gpt2_reads_its_layers_and_the_tied_table_and_nothing_else(record):
    width, inner = 32, 4 * 32
    layer = 3 * width * width + width * width + 2 * width * inner  # matrices
    layer += 3 * width + width + inner + width + 4 * width  # biases, two norms
    assert record.weight_bytes_per_token == 4 * (2 * layer + 30000 * width)


def test_t5_reads_neither_encoder_nor_cross_keys_nor_the_input_table(tiny_eva):
    record = measure(str(tiny_eva), CPU, SMALL, "martlet bench")
    width, inner, ff = 32, 32, 64
    layer = 4 * width * inner + 2 * width * inner + 3 * width * ff + 3 * width
    assert record.weight_bytes_per_token == 4 * (2 * layer + 30000 * width)


def test_int8_weights_count_a_byte_each_and_their_scales():
    int8 = QuantizedTensor(torch.zeros(6, 8, dtype=torch.int8), torch.zeros(6))
    blocks = [{"a.weight": int8, "norm.weight": torch.zeros(8)}]
    assert decode_step_bytes(int8, blocks) == 2 * (6 * 8 + 6 * 4) + 8 * 4


def test_what_is_read_once_a_text_is_no_part_of_a_step():
    blocks = [{"k.weight": torch.zeros(4, 4), "q.weight": torch.zeros(4, 2)}] * 3
    assert decode_step_bytes(torch.zeros(6, 4), blocks, once={"k.weight"}) == 4 * (
        3 * 4 * 2 + 6 * 4
    )


@pytest.mark.parametrize(
    ("quantize", "form"), [("int8", "int8"), ("int4", "int4-g32"), ("int8-g64", "int8-g64")]
)
def test_the_form_that_weights_took_at_load_is_recorded(tiny_cpm1, quantize, form):
    options = LoadOptions(device="cpu", quantize=quantize)
    record = measure(str(tiny_cpm1), options, SMALL, "martlet bench")
    assert record.quantize == form


def test_groups_count_with_their_scales_in_the_bytes_of_a_token(tiny_cpm1):
    int4 = LoadOptions(device="cpu", quantize="int4")
    record = measure(str(tiny_cpm1), int4, SMALL, "martlet bench")
    width, inner = 32, 4 * 32
    # (rows, inputs): half a byte a weight, two bytes for every 32 of them, four a row
    matrices = [(3 * width, width), (width, width), (inner, width), (width, inner)]
    matrix_bytes = sum(rows * (columns // 2 + columns // 16 + 4) for rows, columns in matrices)
    floats = 3 * width + width + inner + width + 4 * width
    table_bytes = 30000 * (width // 2 + width // 16 + 4)
    assert record.weight_bytes_per_token == 2 * (matrix_bytes + 4 * floats) + table_bytes


def test_progress_counts_all_runs(tiny_cpm1):
    steps = []
    measure(str(tiny_cpm1), CPU, SMALL, "martlet bench", lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_workload_beyond_the_context_is_refused(tiny_cpm1):
    with pytest.raises(UsageError, match="context of 64"):
        measure(str(tiny_cpm1), CPU, Workload(60, 5, 1), "martlet bench")


def test_a_missing_model_is_reported_as_load_reports_it():
    with pytest.raises(ModelNotFoundError):
        measure("no-such-model", CPU, SMALL, "martlet bench")


def test_a_folder_outside_any_checkout_has_no_commit(tmp_path):
    (tmp_path / "__init__.py").touch()
    assert checkout_commit(tmp_path) is None
