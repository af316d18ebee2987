import json
import lzma

import pytest

from corpus import (
    TEST_BOOKS,
    VALID_BOOKS,
    Chapter,
    clean,
    dialogues,
    read_corpus,
    restore_quotes,
    split,
)

SAID = "张三道： 你来了么 李四道： 我来了 "


def turns(text: str) -> list[list[str]]:
    return list(dialogues(Chapter("书", "回", text)))


def test_spaces_around_speech_become_quotation_marks() -> None:
    assert restore_quotes(SAID) == "张三道：“你来了么”李四道：“我来了”"


def test_a_line_whose_spaces_do_not_pair_up_is_left_as_it_is() -> None:
    odd = "张三道： 你来了么 李四道： 我来了"
    assert restore_quotes(odd) == odd
    assert restore_quotes(f"{SAID}\n{odd}\n无话") == f"{restore_quotes(SAID)}\n{odd}\n无话"


def test_markup_odd_spaces_and_empty_lines_are_dropped() -> None:
    assert clean("\u3000<b>却说</b>．  张三\r\n \n\n来了 ") == "却说。 张三\n来了"


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.xz"])
def test_a_corpus_is_read_packed_or_not(tmp_path, name) -> None:
    rows = [{"book": "水浒传", "chapter": f"第{i}回", "text": f" 话说{i} "} for i in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / name).write_bytes(lzma.compress(text) if name.endswith(".xz") else text)
    assert list(read_corpus(tmp_path / name)) == [
        Chapter("水浒传", f"第{i}回", f"话说{i}") for i in range(3)
    ]


def test_no_book_is_in_two_parts_and_no_chapter_is_lost() -> None:
    books = ["水浒传", *TEST_BOOKS, "红楼梦", *VALID_BOOKS, "水浒传"]
    chapters = [Chapter(book, str(i), "") for i, book in enumerate(books * 2)]
    parts = split(chapters)
    names = {part: {chapter.book for chapter in rows} for part, rows in parts.items()}
    assert names["train"] == {"水浒传", "红楼梦"}
    assert names["valid"] == set(VALID_BOOKS)
    assert names["test"] == set(TEST_BOOKS)
    assert sorted(c.title for rows in parts.values() for c in rows) == sorted(
        c.title for c in chapters
    )


def test_speech_after_speech_is_a_dialogue() -> None:
    assert turns(SAID) == [["你来了么", "我来了"]]
    assert turns("张三道： 你来了么 \n李四笑道： 我来了 ") == [["你来了么", "我来了"]]


def test_one_speech_alone_is_no_dialogue() -> None:
    assert turns("张三道： 你来了么 李四不答。") == []


def test_a_speaker_who_goes_on_has_one_turn() -> None:
    text = "张三道： 你来了么。 又道： 坐罢。 李四道： 我来了 "
    assert turns(text) == [["你来了么。坐罢。", "我来了"]]


def test_long_narration_between_two_speeches_cuts_the_dialogue() -> None:
    other = "王五道： 酒来 赵六道： 来了 "
    for gap in (50, 70):
        runs = turns(SAID + "走" * gap + other)
        joined = [["你来了么", "我来了", "酒来", "来了"]]
        assert runs == (joined if gap == 50 else [["你来了么", "我来了"], ["酒来", "来了"]])


def test_narration_counts_across_paragraphs() -> None:
    other = "王五道： 酒来 赵六道： 来了 "
    text = SAID + "\n" + "走" * 40 + "\n" + "走" * 40 + other
    assert turns(text) == [["你来了么", "我来了"], ["酒来", "来了"]]


def test_what_nobody_says_is_no_turn_and_cuts_the_dialogue() -> None:
    text = SAID + "匾上写着 忠义堂 王五道： 酒来 赵六道： 来了 "
    assert turns(text) == [["你来了么", "我来了"], ["酒来", "来了"]]
