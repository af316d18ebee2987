import itertools

import numpy as np
import pytest
import torch

from batches import (
    CPM2_EOD,
    CPM2_LAST,
    CPM2_S,
    CPM2_SENTINEL,
    EVA_EOD,
    EVA_SENTINEL,
    EVA_SEP,
    IGNORE,
    MAX_SPANS,
    SOURCE_LEN,
    TARGET_LEN,
    Dialogues,
    Examples,
    Source,
    Stream,
    clause_marks,
    collate,
    continue_example,
    fill_example,
    gen_example,
    hide,
    loader,
    pieces,
    turn_example,
)

MARK = 9  # a token that ends a clause
ENDS = np.zeros(1 << 16, dtype=bool)
ENDS[MARK] = True


def stream(*, chapter_tokens: int = 700, eod: int = CPM2_EOD) -> Stream:
    """Tokens that all differ, so that a place in the text is a token; marks and chapter ends."""
    ids = np.arange(1000, 13000)
    ids[::11] = MARK
    ids[chapter_tokens::chapter_tokens] = eod
    return Stream(ids, np.arange(0, 12000, 40))


def reassembled(source: list[int], target: list[int]) -> list[int]:
    """The source with every sentinel replaced by what the target says of it."""
    spans: dict[int, list[int]] = {}
    for token in target[1:]:
        if token >= CPM2_SENTINEL:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    nested = (spans[t] if t >= CPM2_SENTINEL else [t] for t in source)
    return list(itertools.chain.from_iterable(nested))


def test_hidden_spans_put_back_give_the_window_again() -> None:
    text = stream()
    rng = np.random.default_rng(0)
    for _ in range(300):
        at = int(rng.integers(len(text.ids) - 200))
        window = text.ids[at : at + int(rng.integers(24, 200))]
        source, target = hide(window, pieces(rng, window, ENDS))
        assert reassembled(source, target) == window.tolist()


def test_a_fill_ends_with_the_sentinel_after_its_last_blank() -> None:
    text = stream()
    rng = np.random.default_rng(1)
    for _ in range(300):
        source, target = fill_example(rng, text, ENDS)
        if source[-1] == CPM2_LAST:
            continue  # too little text before a chapter's end: written on instead
        blanks = [t for t in source if t >= CPM2_SENTINEL]
        assert 1 <= len(blanks) <= MAX_SPANS
        assert blanks == list(range(CPM2_SENTINEL, CPM2_SENTINEL + len(blanks)))
        assert target[0] == CPM2_S
        assert [t for t in target if t >= CPM2_SENTINEL] == [*blanks, blanks[-1] + 1]
        assert target[-1] == blanks[-1] + 1
        assert CPM2_EOD not in source + target  # never across two chapters
        assert len(source) <= SOURCE_LEN
        assert len(target) <= TARGET_LEN


def test_spans_are_in_order_apart_and_within_the_window() -> None:
    window = stream().ids[:150]
    rng = np.random.default_rng(2)
    for _ in range(300):
        spans = pieces(rng, window, ENDS)
        edges = [edge for span in spans for edge in span]
        assert edges == sorted(edges)
        assert all(start < end for start, end in spans)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
        assert edges[0] >= 0
        assert edges[-1] <= len(window)


def test_some_of_the_spans_are_whole_clauses() -> None:
    window = stream().ids[:150]
    rng = np.random.default_rng(3)
    spans = [span for _ in range(200) for span in pieces(rng, window, ENDS)]
    assert any(window[a - 1] == MARK and window[b] == MARK for a, b in spans if a > 0 and b < 150)


def test_a_target_without_room_hides_fewer_spans() -> None:
    window = stream().ids[:200]
    source, target = hide(window, [(i, i + 30) for i in range(0, 200, 40)])
    assert len(target) <= TARGET_LEN
    assert [t for t in source if t >= CPM2_SENTINEL] == [CPM2_SENTINEL + i for i in range(3)]
    assert reassembled(source, target) == window.tolist()


def test_writing_on_goes_to_the_end_of_the_chapter_and_not_beyond() -> None:
    text = stream()
    rng = np.random.default_rng(4)
    ended = 0
    for _ in range(300):
        source, target = gen_example(rng, text)
        assert source[-1] == CPM2_LAST
        assert target[:2] == [CPM2_S, CPM2_LAST]
        assert CPM2_EOD not in source[:-1]
        assert CPM2_EOD not in target[:-1]
        assert len(source) <= SOURCE_LEN
        assert len(target) <= TARGET_LEN
        ended += target[-1] == CPM2_EOD
    assert 0 < ended < 300


def test_the_speaker_learns_to_write_on_with_its_own_sentinel() -> None:
    source, target = continue_example(np.random.default_rng(5), stream(eod=EVA_EOD))
    assert source[-1] == target[0] == EVA_SENTINEL + 1
    assert CPM2_LAST not in source + target


def dialogue_rows() -> Dialogues:
    """Two dialogues: turns of three tokens 1xx, 2xx ...; a turn longer than a target; one of 3."""
    lengths = [3, 3, 3, 3, 3, 200, 3]
    turns = [np.arange(n) + 1000 * (i + 1) for i, n in enumerate(lengths)]
    return Dialogues(np.concatenate(turns), np.cumsum(lengths), np.array([4, 7]))


def test_a_turn_answers_the_turns_of_its_own_dialogue() -> None:
    talk = dialogue_rows()
    rng = np.random.default_rng(6)
    replies = set()
    for _ in range(300):
        source, target = turn_example(rng, talk)
        assert source[-1] == target[0] == EVA_SENTINEL
        assert target[-1] == EVA_SEP
        assert len(source) <= SOURCE_LEN
        assert len(target) <= TARGET_LEN
        reply = target[1] // 1000 - 1
        replies.add(reply)
        heard = [t // 1000 - 1 for t in source if t >= 1000 and t != EVA_SENTINEL]
        first = 0 if reply < 4 else 4
        assert sorted(set(heard)) == list(range(reply - len(set(heard)), reply))
        assert min(heard, default=first) >= first
        assert source.count(EVA_SEP) == len(set(heard))
    assert replies == {1, 2, 3, 5, 6}  # a dialogue's first turn answers nothing


def test_batches_are_padded_to_fixed_lengths_and_shifted_by_one() -> None:
    source, mask, target, labels = collate([([5, 6, 7], [1, 2, 3]), ([8], [1, 4])])
    assert source.shape == mask.shape == (2, SOURCE_LEN)
    assert target.shape == labels.shape == (2, TARGET_LEN)
    assert mask.sum(1).tolist() == [3, 1]
    assert source[0, :4].tolist() == [5, 6, 7, 0]
    assert target[0, :3].tolist() == [1, 2, 0]
    assert labels[0, :3].tolist() == [2, 3, IGNORE]
    assert labels[1, :2].tolist() == [4, IGNORE]


@pytest.mark.parametrize("model", ["cpm2-mini", "eva-mini"])
def test_the_same_seed_gives_the_same_batches(tmp_path, model: str) -> None:
    eod = CPM2_EOD if model == "cpm2-mini" else EVA_EOD
    text = stream(eod=eod)
    for form in ("found", "quoted"):
        np.savez(tmp_path / f"{model}-train-{form}.npz", ids=text.ids, starts=text.starts)
    talk = dialogue_rows()
    np.savez(
        tmp_path / "eva-mini-train-dialogues.npz",
        turns=talk.turns,
        turn_ends=talk.turn_ends,
        run_ends=talk.run_ends,
    )
    rows = Source(model, tmp_path, batch=6)
    one, same, other = (next(iter(loader(Examples(rows, seed), workers=0))) for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert not torch.equal(torch.as_tensor(one[0]), torch.as_tensor(other[0]))


def test_clauses_end_at_the_marks_of_the_vocabulary() -> None:
    marks = clause_marks("cpm2-mini")
    assert 2 < marks.sum() < 20
