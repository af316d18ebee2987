import pytest

from martlet.cli import choose_model as choose_module
from martlet.cli.choose_model import choose_model
from martlet.cli.options import LoadOptions
from martlet.errors import CapacityError, UsageError
from martlet.hub.catalogue import Catalogue, ModelEntry

LOADING = LoadOptions(None, None, None, "auto", None, "none")


@pytest.fixture(autouse=True)
def models(monkeypatch, tmp_path):
    entries = [
        ModelEntry("writer", tmp_path / "writer", "bundled", "cpm1", "write", "int8", 5 << 20),
        ModelEntry("talker", tmp_path / "talker", "bundled", "eva", "chat", "int8", 20 << 20),
        ModelEntry("broken", tmp_path / "broken", "local", problem="no weights"),
        ModelEntry("large", tmp_path / "large", "local", "llama", "write", "int8", 90 << 30),
        ModelEntry("own", tmp_path / "own", "local", "llama", "write", "int8", 3 << 30),
    ]
    monkeypatch.setattr(Catalogue, "entries", lambda self: entries)

    def plan(path, **options):
        assert options == LOADING.arguments()
        if path.name == "large":
            raise CapacityError("it does not fit")

    monkeypatch.setattr("martlet.api.loading.plan", plan)


@pytest.mark.parametrize(
    ("typed", "name"), [([""], "own"), (["2"], "talker"), (["0", "9", "x", "writer"], "writer")]
)
def test_a_person_chooses_among_what_fits_and_enter_takes_the_first(
    monkeypatch, capsys, typed, name
):
    monkeypatch.setattr(choose_module, "is_interactive", lambda: True)
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda: next(lines))
    assert choose_model(LOADING) == name
    shown = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in shown[1:4]] == [
        ["1", "own"], ["2", "talker"], ["3", "writer"],
    ]  # fmt: skip
    assert shown[1].endswith("write  3.0 GiB")


def test_without_a_terminal_the_list_is_shown_and_2_is_the_code(martlet):
    done = martlet("run", stdin="你好")
    assert done.code == 2
    assert done.stdout == ""
    _, *rows, error = done.stderr.splitlines()
    assert [row.split()[1] for row in rows] == ["own", "talker", "writer"]
    assert error.startswith("error: MODEL is missing")


def test_no_model_at_all_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(Catalogue, "entries", lambda self: [])
    with pytest.raises(UsageError, match="martlet pull"):
        choose_model(LOADING)


def test_ctrl_d_leaves(monkeypatch, martlet):
    monkeypatch.setattr(choose_module, "is_interactive", lambda: True)
    assert martlet("run").code == 130
