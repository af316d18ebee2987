import threading

import pytest
import torch

import martlet
from martlet.engine.fill import Filling, count_blanks, split_at_blanks
from martlet.engine.request import SamplingParams
from martlet.errors import ContextLengthError, UsageError

# By passes, and by decode steps as their definition says.
WAYS = ["passes", "steps"]


def _load(folder, way):
    model = martlet.load(folder, device="cuda" if way == "gpu" else "cpu")
    model._model.generator.uses_steps = way != "passes"
    return model


@pytest.fixture(scope="module", params=[*WAYS, pytest.param("gpu", marks=pytest.mark.gpu)])
def filler(tiny_cpm2, request):
    return _load(tiny_cpm2, request.param)


@pytest.fixture(scope="module", params=WAYS)
def scripted(tiny_cpm2, request):
    """Not on a GPU: captured steps read no script."""
    return _load(tiny_cpm2, request.param)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("一<blank>二", ["一", "二"]),
        ("一<span>二<blank>", ["一", "二", ""]),
        ("__一_____二", ["", "一", "二"]),
        ("一＿＿二_三__", ["一", "二_三", ""]),
        ("____", ["", ""]),
        ("<blank><blank>", ["", "", ""]),
    ],
)
def test_blanks_are_found_as_people_write_them(text, pieces):
    assert split_at_blanks(text) == pieces


@pytest.mark.parametrize("text", ["", "没有空", "一_二", "<BLANK>", "<blank >"])
def test_a_text_without_a_blank_is_refused_with_the_marks_named(text):
    with pytest.raises(UsageError, match=r"no blank; write <blank>, <span> or __"):
        split_at_blanks(text)


def test_every_blank_is_answered_and_stands_where_it_says(filler):
    fill = filler.fill("北京__欢迎<blank>你<span>。", max_tokens=12, seed=1)
    assert [blank.index for blank in fill.blanks] == [0, 1, 2]
    for blank in fill.blanks:
        assert blank.text.strip()
        assert fill.text[blank.start : blank.end] == blank.text
        assert 1 <= len(blank.token_ids) <= 12
        assert filler.tokenizer.decode(blank.token_ids) == blank.text
        assert blank.logprob < 0
    rest = [fill.text[: fill.blanks[0].start]]
    rest += [fill.text[a.end : b.start] for a, b in zip(fill.blanks, fill.blanks[1:], strict=False)]
    assert [*rest, fill.text[fill.blanks[-1].end :]] == ["北京", "欢迎", "你", "。"]


def test_tokens_are_shared_out_and_an_unfinished_blank_is_reported_open(filler):
    fill = filler.fill("一__二__三__四", max_tokens=8, seed=0)
    # Random weights hardly ever choose the one closing token of 26240.
    assert [len(blank.token_ids) for blank in fill.blanks] == [2, 3, 3]
    assert not any(blank.closed for blank in fill.blanks)
    assert fill.stats.finish_reason == "length"


def test_no_sentinel_or_control_token_is_in_an_answer(filler):
    for seed in range(5):
        fill = filler.fill("一__二__三", max_tokens=20, temperature=5.0, seed=seed)
        control = filler.tokenizer.special.control_ids()
        assert not control & {i for blank in fill.blanks for i in blank.token_ids}
        assert "<s_" not in fill.text


class _Script:
    """An architecture's decoder replaced by a script: the logits want these tokens in turn."""

    def __init__(self, model, wanted):
        self.wanted = list(wanted)
        self.model = model

    def __enter__(self):
        self.architecture = self.model._model.generator.architecture
        self.head = self.architecture.head
        self.architecture.head = self._head
        return self

    def __exit__(self, *_):
        del self.architecture.head

    def _head(self, fixed, stack, hidden):
        if stack == "encoder":
            return self.head(fixed, stack, hidden)
        logits = torch.zeros(1, hidden.shape[1], self.architecture.vocab_size)
        # The most wanted first: what may not come now gives way to the next.
        for rank, token_id in enumerate(self.wanted.pop(0)):
            logits[..., token_id] = 100.0 - rank
        return logits


def test_a_blank_is_closed_by_its_own_sentinel_only_and_never_at_once(scripted):
    special = scripted.tokenizer.special
    s = special.sentinels
    wanted = [
        [s[1], s[2], special.eos, 500],  # nothing may close an empty blank
        [special.eos, s[0], s[2], special.unk, s[1], 600],  # only the sentinel of this blank
        [s[2], 700],
        [s[3], s[1], special.eos],  # the end of the document closes the last one
    ]
    with _Script(scripted, wanted):
        fill = scripted.fill("一__二__三", max_tokens=20, temperature=0)
    assert [blank.token_ids for blank in fill.blanks] == [(500,), (700,)]
    assert all(blank.closed for blank in fill.blanks)
    assert fill.stats.finish_reason == "eos"


def test_a_blank_of_white_space_may_not_close(scripted):
    special = scripted.tokenizer.special
    space = scripted.tokenizer.encode("好 好")[1]
    assert scripted.tokenizer.decode([space]) == " "
    s1 = special.sentinels[1]
    with _Script(scripted, [[space], [s1, 500], [s1]]):
        fill = scripted.fill("一__二", max_tokens=20, temperature=0)
    assert fill.blanks[0].token_ids == (space, 500)


def test_a_stop_string_closes_its_blank_and_the_next_is_still_answered(scripted):
    ids = scripted.tokenizer.encode("今天")
    stop_id = scripted.tokenizer.encode("。")[0]
    special = scripted.tokenizer.special
    wanted = [[ids[0]], [stop_id], [700], [special.sentinels[2]]]
    with _Script(scripted, wanted):
        fill = scripted.fill("一__二__三", max_tokens=20, temperature=0, stop="。")
    assert fill.blanks[0].text == "今天"
    assert fill.blanks[1].token_ids == (700,)
    assert all(blank.closed for blank in fill.blanks)


def test_streamed_pieces_are_the_answers(filler):
    stream = filler.fill("一__二__三", max_tokens=9, seed=4, stream=True)
    pieces = list(stream)
    whole = filler.fill("一__二__三", max_tokens=9, seed=4)
    assert stream.result().blanks == whole.blanks
    for blank in whole.blanks:
        assert "".join(piece for index, piece in pieces if index == blank.index) == blank.text
    assert [index for index, _ in pieces] == sorted(index for index, _ in pieces)


def test_a_filling_half_read_can_still_be_finished_and_a_closed_one_cannot(filler):
    stream = filler.fill("一__二", max_tokens=5, seed=4, stream=True)
    next(stream)
    assert stream.result().blanks == filler.fill("一__二", max_tokens=5, seed=4).blanks
    closed = filler.fill("一__二", max_tokens=5, seed=4, stream=True)
    next(closed)
    closed.close()
    with pytest.raises(UsageError, match="closed"):
        closed.result()


def test_a_filling_closes_itself_at_the_end_of_a_with_block(filler):
    with filler.fill("一__二", max_tokens=5, seed=4, stream=True) as broken_off:
        next(broken_off)
    assert broken_off.stats is None
    assert list(broken_off) == []
    with filler.fill("一__二", max_tokens=5, seed=4, stream=True) as whole:
        for _ in whole:
            pass
    assert whole.stats == whole.result().stats == filler.last_stats


def test_pieces_around_the_blanks_do_as_well_as_a_text(filler):
    assert (
        filler.fill(["一", "二"], max_tokens=5, seed=4).text
        == filler.fill("一__二", max_tokens=5, seed=4).text
    )


def test_too_many_blanks_are_refused(filler):
    with pytest.raises(UsageError, match=r"190 blanks .* at most 189"):
        filler.fill("一__" * 190, max_tokens=1000)
    with pytest.raises(UsageError, match="max_tokens is 2 for 3 blanks"):
        filler.fill("一__" * 3, max_tokens=2)


def test_a_long_text_is_refused_with_both_numbers(filler):
    with pytest.raises(ContextLengthError, match=r"\d+ tokens .* at most 64"):
        filler.fill("天空是蔚蓝色，" * 40 + "__")


def test_a_cancelled_filling_reports_what_it_has(filler):
    cancel = threading.Event()
    params = SamplingParams(max_tokens=10, seed=0)
    filling = Filling(filler._model, ["一", "二", "三"], params, cancel=cancel)
    next(filling)
    cancel.set()
    fill = filling.result()
    assert fill.stats.finish_reason == "cancelled"
    assert fill.blanks[0].text
    assert fill.blanks[1].text == ""
    assert not any(blank.closed for blank in fill.blanks)


def test_each_blank_has_its_own_room_unless_the_call_says_otherwise(tiny_cpm2):
    model = martlet.load(tiny_cpm2, device="cpu")
    for text in ("次日__", "次日__，众人__。", ["次日", "，众人", "。"]):
        filled = model.fill(text, seed=0)
        assert sum(len(blank.token_ids) for blank in filled.blanks) <= 32 * len(filled.blanks)
    assert len(model.fill("次日__", max_tokens=3, seed=0).blanks[0].token_ids) <= 3
    assert count_blanks("次日__，众人__。") == count_blanks(["次日", "，众人", "。"]) == 2
    assert count_blanks(None) == count_blanks("次日") == count_blanks([]) == 0
