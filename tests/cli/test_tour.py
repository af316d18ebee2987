import pytest
from rich.cells import cell_len

from martlet.cli.tour import Column


def write_in_column(capsys, pieces):
    column = Column()
    column.write_all(pieces)
    return capsys.readouterr().out


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_column_breaks_at_76_cells_wherever_the_pieces_end(capsys, size):
    text = "却说 that old 汉，" * 20
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    lines = write_in_column(capsys, pieces).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("  ") and cell_len(line) <= 76 for line in lines)
    assert all(cell_len(line) >= 75 for line in lines[:-1])
    assert "".join(line[2:] for line in lines) == text


def test_line_ends_of_the_text_are_kept(capsys):
    assert write_in_column(capsys, ["一\n二", "\n", "三"]) == "  一\n  二\n  三\n"


def test_the_tour_shows_three_tasks_and_what_to_type_next(
    martlet, monkeypatch, tiny_cpm1, tiny_cpm2, tiny_eva
):
    folders = {"cpm1-mini": tiny_cpm1, "cpm2-mini": tiny_cpm2, "eva-mini": tiny_eva}
    monkeypatch.setattr("martlet.api.opening.locate", folders.__getitem__)
    done = martlet("tour", "--device", "cpu")
    assert done.code == 0
    for heading in ("1  Fill", "2  Write on", "3  Chat", "Now you"):
        assert f"\n{heading}" in done.stdout
    assert all(cell_len(line) <= 80 for line in done.stdout.splitlines())
    assert 'write cpm1-mini "' in done.stdout
    assert done.stdout.rstrip().endswith(" serve")  # the last word is the web app's
    assert done.stdout == martlet("tour", "--device", "cpu").stdout  # seeds are fixed
    assert done.stderr.count("tokens/s") == 5


def test_a_tour_without_its_models_shows_nothing_but_the_error(martlet, monkeypatch):
    from martlet.errors import ModelNotFoundError

    def missing(name):
        raise ModelNotFoundError(f"{name} is missing")

    monkeypatch.setattr("martlet.api.opening.locate", missing)
    done = martlet("tour")
    assert (done.code, done.stdout) == (3, "")
    assert done.stderr == "error: cpm2-mini is missing\n"
