import pytest

from martlet.cli.repl.commands import Command, Commands, Leave
from martlet.errors import UsageError


@pytest.fixture
def calls():
    return []


@pytest.fixture
def commands(calls):
    return Commands(
        [
            Command("/reset", "", "forget", lambda text: calls.append(("reset", text))),
            Command("/set", "NAME VALUE", "change", calls.append, ("temperature ", "top_p ")),
            Command("/save", "FILE", "write", calls.append, ("--force ",), takes_file=True),
        ]
    )


def test_a_command_gets_the_text_behind_it(commands, calls):
    commands.run("/set", "top_p 1")
    commands.run("/clear", "")  # what other programs call /reset
    assert calls == ["top_p 1", ("reset", "")]


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
def test_the_words_that_leave(commands, word):
    with pytest.raises(Leave):
        commands.run(word, "")


def test_an_unknown_command_names_the_nearest_and_how_to_send_it_as_text(commands):
    with pytest.raises(UsageError, match=r"no command /rest; did you mean /reset\? .*//"):
        commands.run("/rest", "")
    with pytest.raises(UsageError, match="no command /home/me; /help lists them"):
        commands.run("/home/me", "is a folder")


def test_text_behind_a_command_that_takes_none_is_refused(commands, calls):
    with pytest.raises(UsageError, match="/reset takes nothing behind it, got 'now'"):
        commands.run("/reset", "now")
    assert calls == []


def test_help_has_a_line_for_every_command_in_80_columns(commands, capsys):
    commands.run("/?", "")
    lines = capsys.readouterr().err.splitlines()
    for word in ("/help", "/reset", "/set NAME VALUE", "/save FILE", "/exit", '"""', "//text"):
        assert sum(line.strip().startswith(word) for line in lines) == 1, word
    assert all(len(line) <= 79 for line in lines)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/s", ["/set ", "/save "]),
        ("/re", ["/reset"]),
        ("/set t", ["temperature ", "top_p "]),
        ("/set  te", ["temperature "]),
        ("/set top_p 0", []),
        ("/reset x", []),
        ("", []),
        ("你好", []),
        ("/nothing x", []),
    ],
)
def test_tab_completes_commands_and_their_values(commands, line, expected):
    assert commands.completions(line, line.rfind(" ") + 1) == expected


def test_tab_completes_files_with_blanks_in_their_names_and_folders(
    commands, tmp_path, monkeypatch
):
    (tmp_path / "对话 one.json").write_text("")
    (tmp_path / "对话 two").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def completed(line):
        start = line.rfind(" ") + 1
        return [line[:start] + word for word in commands.completions(line, start)]

    assert completed("/save 对") == ["/save 对话 one.json", "/save 对话 two/"]
    assert completed("/save 对话 t") == ["/save 对话 two/"]
    assert completed("/save ~/对话 o") == ["/save ~/对话 one.json"]
    assert completed(f"/save {tmp_path}/对话 o") == [f"/save {tmp_path}/对话 one.json"]
    assert completed("/save --f") == ["/save --force "]
