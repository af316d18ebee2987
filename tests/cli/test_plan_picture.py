import pytest
from rich.cells import cell_len

from martlet.cli.plan_picture import print_plan
from martlet.device.size import MIB
from martlet.memory.plan import Bandwidth, BlockSize, Budget, Demand, Work, make_plan

RATES = Bandwidth(3.5e12, 55.2e9, 1e11, 6e14, 1e-5)
DEMAND = Demand(30 * MIB, 96 * MIB, 450 * MIB)


def cpm2_blocks():
    blocks = [BlockSize("fixed", 208 * MIB)]
    blocks += [BlockSize(f"encoder.{i}", 184 * MIB) for i in range(24)]
    for i in range(24):
        blocks += [BlockSize(f"decoder.{i}", 216 * MIB), BlockSize(f"decoder.{i}.once", 32 * MIB)]
    return blocks


@pytest.fixture
def picture(capsys):
    def draw(blocks, gpu_bytes):
        plan = make_plan(blocks, "cuda", Budget(gpu_bytes, 64 << 30), DEMAND)
        work = Work(1, 256, 104 * MIB)
        capsys.readouterr()
        print_plan(plan.predicted(work, RATES))
        return capsys.readouterr().out.splitlines()

    return draw


@pytest.mark.parametrize("gib", [1.5, 3, 6, 11, 80])
def test_everything_fits_into_80_columns(picture, gib):
    lines = picture(cpm2_blocks(), int(gib * 2**30))
    assert max(cell_len(line) for line in lines) <= 80
    bar = next(line for line in lines if set(line) <= set("CFBSKW.") and len(line) > 20)
    assert len(bar) == 80


def test_streamed_blocks_are_light_and_evenly_spread(picture):
    lines = picture(cpm2_blocks(), 4 << 30)
    decoder = next(line for line in lines if line.startswith("decoder  ") and "░" in line)
    cells = decoder.split()[1]
    assert len(cells) == 24
    assert cells[0] == "░"
    assert "███" not in cells
    assert any(line.startswith("encoder") and "░" * 24 in line for line in lines)
    counts = [line.split()[1] for line in lines if line.startswith("decoder  ") and "MiB" in line]
    assert sorted(counts) == sorted(str(cells.count(kind)) for kind in "█░")


def test_a_long_stack_takes_several_rows(picture):
    blocks = [BlockSize("fixed", MIB), *(BlockSize(f"decoder.{i}", MIB) for i in range(150))]
    lines = picture(blocks, 2 << 30)
    assert sum(line.count("█") for line in lines) == 150 + 1  # and the legend
    assert max(map(cell_len, lines)) <= 80


def test_the_times_to_expect_are_shown_with_the_rates_they_rest_on(picture):
    text = " ".join(picture(cpm2_blocks(), 3 << 30))
    for part in ("tokens/s", "copied", "first token after", "256 tokens", "55.2 GB/s", "3.50 TB/s"):
        assert part in text
