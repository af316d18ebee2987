import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.engine.reply import Reply, ThoughtSplitter


def _split(text, cuts=(), state="start"):
    """(thoughts, answer) of a text that comes in pieces, and whether the parts came in order."""
    splitter = ThoughtSplitter(state)
    edges = [0, *sorted(cuts), len(text)]
    parts = []
    for start, end in itertools.pairwise(edges):
        parts += splitter.push(text[start:end])
    parts += splitter.flush()
    assert all(part.text for part in parts)
    kinds = [part.kind for part in parts]
    assert kinds == sorted(kinds, reverse=True)  # all thoughts before all of the answer
    joined = {"thought": "", "answer": ""}
    for part in parts:
        joined[part.kind] += part.text
    return joined["thought"], joined["answer"]


@pytest.mark.parametrize(
    ("text", "state", "thought", "answer"),
    [
        ("<think>\nhm, 5\n</think>\n\nFive.", "start", "hm, 5", "Five."),
        ("hm, 5\n</think>\n\nFive.\n", "thought", "hm, 5", "Five.\n"),
        ("\n<think></think>Five.", "start", "", "Five."),
        ("Five.", "start", "", "Five."),
        (" Five <think>no</think>", "start", "", " Five <think>no</think>"),
        ("<think>still on <i", "start", "still on <i", ""),
        ("a </thin> b </think> c </think>", "thought", "a </thin> b", "c </think>"),
        ("<thin", "start", "", "<thin"),
        ("\n\n", "start", "", "\n\n"),
        ("<think>a</think>b", "answer", "", "<think>a</think>b"),
        ("", "thought", "", ""),
    ],
)
def test_thoughts_stand_between_their_marks_where_a_reply_begins(text, state, thought, answer):
    assert _split(text, state=state) == (thought, answer)
    assert _split(text, range(len(text)), state) == (thought, answer)


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", "ink>", " ", "\n", "好"]))


@given(data=st.data(), pieces=PIECES, state=st.sampled_from(["start", "thought", "answer"]))
def test_how_a_reply_is_cut_into_pieces_does_not_matter(data, pieces, state):
    text = "".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(text))))
    assert _split(text, cuts, state) == _split(text, state=state)


def test_text_is_told_as_soon_as_it_cannot_be_a_mark():
    splitter = ThoughtSplitter("thought")
    assert [part.text for part in splitter.push("I see ")] == ["I see"]
    assert [part.text for part in splitter.push("a <")] == [" a"]
    assert [part.text for part in splitter.push("b")] == [" <b"]


def test_a_reply_is_a_string_with_thoughts_beside_it():
    assert Reply("Five.", "hm") == "Five."
    assert (Reply("Five.", "hm").thoughts, Reply("Five.").thoughts) == ("hm", "")
