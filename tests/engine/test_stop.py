from hypothesis import given
from hypothesis import strategies as st

from martlet.engine.stop import StopStrings

short = st.text("ab。", min_size=1, max_size=4)
stop_lists = st.lists(short, max_size=4)


def _whole_text(text, stop):
    """The definition: cut where the stop string that is completed first begins."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


def _streamed(pieces, stop):
    stops = StopStrings(stop)
    shown = []
    for piece in pieces:
        shown.append(stops.push(piece))
        if stops.stopped:
            return shown, True
    shown.append(stops.flush())
    return shown, False


@given(st.lists(st.text("ab。c", max_size=4), max_size=8), stop_lists)
def test_pieces_give_what_the_whole_text_gives(pieces, stop):
    shown, stopped = _streamed(pieces, stop)
    assert ("".join(shown), stopped) == _whole_text("".join(pieces), stop)


@given(st.text("ab。c", max_size=20), stop_lists)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(text, stop):
    stops = StopStrings(stop)
    num_shown = 0
    for end, character in enumerate(text, start=1):
        num_shown += len(stops.push(character))
        if stops.stopped:
            return
        held = text[num_shown:end]
        assert not held or any(s.startswith(held) and s != held for s in stop)


def test_a_stop_string_over_several_pieces_is_never_seen():
    stops = StopStrings(["用户："])
    assert stops.push("你好用") == "你好"
    assert stops.push("户") == ""
    assert stops.push("：再见") == ""
    assert stops.stopped


def test_a_false_alarm_comes_out_whole():
    stops = StopStrings(["用户："])
    assert stops.push("用户") == ""
    assert stops.push("名") == "用户名"
    assert stops.flush() == ""


def test_without_stop_strings_everything_passes_at_once():
    stops = StopStrings([])
    assert stops.push("一二三") == "一二三"
    assert not stops.stopped
