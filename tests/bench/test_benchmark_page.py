"""The benchmark page and its plot, from rows that nobody measured (made-up-rows.json)."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import benchmark_page

    return benchmark_page


@pytest.fixture
def plot(page):
    import memory_plot

    return memory_plot


@pytest.fixture
def rows():
    return json.loads((Path(__file__).parent / "made-up-rows.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["docs/benchmarks.md", "docs/zh/benchmarks.md"])
def words(request):
    return json.loads((ROOT / "docs/benchmarks.json").read_text(encoding="utf-8"))[request.param]


def cells(text, marker):
    (line,) = [line for line in text.splitlines() if line.startswith("|") and marker in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_without_rows_nothing_is_claimed(page, words):
    assert page.render([], words) == words["none"]
    assert not re.search(r"\d", words["none"])


def test_a_row_shows_its_figures(page, rows, words):
    text = page.render(rows, words)
    assert cells(text, "3.00 GiB") == [
        "Martlet, int8", "1", "3.00 GiB", "2.90 GiB", "19.0", "95%", "20.0", "2.50 GB", "7.5 ms",
        "10.0 ms", "4.2 s",
    ]  # fmt: skip


def test_what_was_not_measured_is_a_dash(page, rows, words):
    peer = cells(page.render(rows, words), "transformers 5.0.0, bfloat16")
    assert peer[5:8] == ["–", "–", "–"]


def test_ours_come_first_from_no_budget_downwards_and_peers_last(page, rows, words):
    text = page.render(rows, words)
    section = text[text.index("### cpm2-11b") :]
    budgets = re.findall(r"^\| (\S+) .*?\| \d \| (.*?) \|", section, flags=re.MULTILINE)
    none = words["unlimited"]
    assert budgets == [
        ("Martlet,", none),
        ("Martlet,", "6.00 GiB"),
        ("Martlet,", "3.00 GiB"),
        ("Martlet,", none),  # 8 rows
        ("transformers", none),
    ]


def test_ceilings_that_moved_between_runs_are_a_range(page, rows, words):
    text = page.render(rows, words)
    assert "50–55 GB/s" in text
    assert "4,000 GB/s" in text


def test_every_command_is_named_once(page, rows, words):
    text = page.render([*rows, *rows], words)
    for row in rows:
        assert len(re.findall(f"^{re.escape(row['command'])}$", text, flags=re.MULTILINE)) == 1


def test_the_plot_shows_one_shape_in_order_of_memory(page, rows):
    chosen = page.plotted(rows)
    assert [page.memory_bytes(row) >> 30 for row in chosen] == [3, 6, 12]
    assert {row["shape"] for row in chosen} == {"cpm2-11b"}


def test_lines_of_the_plot_are_speeds_and_roofs(page, plot, rows):
    lines = {label: points for label, _, points in plot._lines(page.plotted(rows))}
    assert lines["measured"] == [(3, 19.0), (6, 95.0), (12, 500.0)]
    (_, link) = next(item for item in lines.items() if item[0].startswith("PCIe"))
    assert link == [(3, 20.0), (6, 110.0)]
    (_, memory) = next(item for item in lines.items() if item[0].startswith("device memory"))
    assert {speed for _, speed in memory} == {800.0}
    assert lines["the plan's prediction"][0] == (3, 20.0)


def test_the_same_rows_draw_the_same_picture(page, plot, rows, tmp_path):
    for name in ("first.svg", "second.svg"):
        plot.draw(page.plotted(rows), tmp_path / "images" / name)
    first = (tmp_path / "images/first.svg").read_text(encoding="utf-8")
    assert first == (tmp_path / "images/second.svg").read_text(encoding="utf-8")
    assert first.startswith("<?xml")


def test_the_picture_is_shown_where_it_was_drawn(page, rows, words):
    text = page.render(rows, words, "../")
    assert f"](../{page.PLOT})" in text
    assert page.PLOT not in page.render(rows[:1], words)
