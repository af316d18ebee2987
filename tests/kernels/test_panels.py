from __future__ import annotations

import pytest

from martlet.kernels.cuda.panels import panels

SIZES = [(4096,), (4096, 4096, 4096), (10240, 10240), (4096, 1024, 1024), (7,), (20, 48, 7, 300)]


@pytest.mark.parametrize("sizes", [*SIZES, (33, 1, 1, 1, 1, 90)], ids=str)
@pytest.mark.parametrize("max_rows", [1, 16, 100, 1000, 6144, 1 << 20])
def test_panels_hold_every_row_once_and_begin_at_tiles(
    sizes: tuple[int, ...], max_rows: int
) -> None:
    reached, seen = 0, [0] * len(sizes)
    for panel in panels(sizes, max_rows):
        assert panel.start == reached
        reached = panel.stop
        assert reached - panel.start == sum(piece.rows for piece in panel.pieces)
        assert reached - panel.start <= max(16, max_rows)
        assert 1 <= len(panel.pieces) <= 3
        for piece in panel.pieces:
            assert piece.first_row == seen[piece.weight]
            assert piece.first_row % 16 == 0
            seen[piece.weight] += piece.rows
    assert seen == list(sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_what_fits_is_one_panel(sizes: tuple[int, ...]) -> None:
    count = len(panels(sizes, 1 << 20))
    assert count == -(-len(sizes) // 3)


def test_panels_are_about_equally_high() -> None:
    heights = [panel.stop - panel.start for panel in panels((10240, 10240), 8192)]
    assert heights == [6912, 6912, 6656]
