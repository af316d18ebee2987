import pytest

from martlet.cli.repl.entry import CONTINUED, PROMPT, Entry, parse_entry, read_entry


def typed(*lines):
    """What is read from these lines, and the prompts that were shown for them."""
    remaining, prompts = list(lines), []

    def read_line(prompt):
        prompts.append(prompt)
        return remaining.pop(0)

    entry = parse_entry(read_entry(read_line))
    assert remaining == []
    return entry, prompts


@pytest.mark.parametrize(
    ("lines", "entry"),
    [
        (["你好"], Entry("你好")),
        (["  two words "], Entry("two words")),
        (["/show"], Entry("", "/show")),
        (["/set top_p 0.5"], Entry("top_p 0.5", "/set")),
        (["//home is a folder"], Entry("/home is a folder")),
        (["half a line \\", "and the rest"], Entry("half a line \nand the rest")),
        (["a path ends \\\\"], Entry("a path ends \\\\")),
        (['"""', "one", "", "two", '"""'], Entry("one\n\ntwo")),
        (['"""one', 'two"""'], Entry("one\ntwo")),
        (['"""/exit is a word"""'], Entry("/exit is a word")),
        (['"""', "ends \\", '"""'], Entry("ends \\")),
        (['/system """be', 'kind"""'], Entry("be\nkind", "/system")),
        (["pasted\n  text\n"], Entry("pasted\n  text")),
        (['"""pasted\n"quotes"\n"""'], Entry('pasted\n"quotes"')),
        (['say """ aloud'], Entry('say """ aloud')),
    ],
)
def test_lines_become_a_message_or_a_command(lines, entry):
    got, prompts = typed(*lines)
    assert got == entry
    assert prompts == [PROMPT] + [CONTINUED] * (len(lines) - 1)


@pytest.mark.parametrize("lines", [["one\\", "two"], ['"""one', 'two"""'], ["/system x"]])
def test_what_the_history_keeps_means_the_same_when_it_is_sent_again(lines):
    remaining = list(lines)
    kept = read_entry(lambda prompt: remaining.pop(0))
    assert parse_entry(kept) == typed(*lines)[0]
    assert read_entry(lambda prompt: kept) == kept
