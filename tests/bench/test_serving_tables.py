"""The tables of many texts at a time, from rows that nobody measured."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from martlet.bench.measure_batch import BatchRecord

ROOT = Path(__file__).parents[2]
PAGES = ["docs/benchmarks.md", "docs/zh/benchmarks.md"]


def row(**figures):
    """A row as benchmarks/serving.py writes them."""
    usual = {
        "shape": "cpm2-11b",
        "quantize": "int8",
        "device": "Card",
        "torch": "2.13.0",
        "commit": "abc",
        "command": "python benchmarks/serving.py --shapes cpm2-11b",
        "date": "2026-01-01",
        "gpu_memory_budget_bytes": 6 << 30,
        "num_clients": 1,
        "num_slots": 16,
        "slot_tokens": 193,
        "encoder_tokens": 192,
        "chunk_tokens": 256,
        "prompt_tokens": 128,
        "output_tokens": 128,
        "num_texts": 4,
        "total_tokens_per_second": 40.0,
        "time_to_first_token_p50_seconds": 0.1,
        "time_to_first_token_p95_seconds": 0.25,
        "tokens_per_second_of_one": 42.0,
        "streamed_bytes_per_step": 10**9,
        "kv_cache_bytes": 10**8,
        "peak_process_bytes": 10**9,
        "peak_gpu_process_bytes": 5 << 30,
    }
    assert set(usual) == {field.name for field in fields(BatchRecord)}
    assert set(figures) <= set(usual)
    return {**usual, **figures}


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import serving_tables

    return serving_tables


@pytest.fixture(params=PAGES)
def words(request):
    return json.loads((ROOT / "docs/benchmarks.json").read_text(encoding="utf-8"))[request.param]


def lines(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ][2:]


def test_without_rows_nothing_is_claimed(tables, words):
    assert tables.render([], words) == ""
    assert tables.headline([], words) == ""


def test_a_row_shows_its_figures_and_what_is_gained_beside_one_client(tables, words):
    rows = [row(num_clients=16, total_tokens_per_second=500.0), row()]
    assert lines(tables.render(rows, words)) == [
        ["6.00 GiB", "1", "40", "–", "42.0", "100 ms", "250 ms", "5.00 GiB"],
        ["6.00 GiB", "16", "500", "12.5×", "42.0", "100 ms", "250 ms", "5.00 GiB"],
    ]


def test_gains_are_never_taken_from_another_setting(tables, words):
    rows = [row(), row(num_clients=16, gpu_memory_budget_bytes=None)]
    assert [cells[3] for cells in lines(tables.render(rows, words))] == ["–", "–"]


def test_a_machine_without_a_gpu_has_no_columns_about_one(tables, words):
    rows = [row(gpu_memory_budget_bytes=None, peak_gpu_process_bytes=None)]
    assert [len(cells) for cells in lines(tables.render(rows, words))] == [6]


def test_models_and_devices_have_tables_of_their_own(tables, words):
    rows = [row(), row(device="Other card"), row(shape="llama-8b"), row(quantize="none")]
    assert tables.render(rows, words).count("###") == 4


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_the_readme_names_the_setting_that_gains_most(tables, page):
    words = json.loads((ROOT / "docs/measurements.json").read_text(encoding="utf-8"))[page]
    few = row(num_clients=4, total_tokens_per_second=120.0)
    rows = [row(), few, row(num_clients=16, total_tokens_per_second=480.0)]
    line = tables.headline(rows, words)
    for part in ("cpm2-11b", "6.00 GiB", "16", "480", "12.0"):
        assert part in line


def test_the_readme_says_nothing_where_loads_cannot_be_compared(tables):
    words = json.loads((ROOT / "docs/measurements.json").read_text(encoding="utf-8"))["README.md"]
    assert tables.headline([row(num_clients=16)], words) == ""
