import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from martlet.tokenizers import segmenter
from martlet.tokenizers.segmenter import default_segmenter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # invalid escapes in jieba's own source
    import jieba

STORY = (
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。"
    "小明硕士毕业于中国科学院计算所，后在日本京都大学深造，工资涨了12.5%，买了C++和T恤。\r\n"
    "他来到了网易杭研大厦 he said O.K.\t李小福是创新办主任也是云计算方面的专家，龘靐𠮷。"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory):
    """jieba itself, with its dictionary copy kept out of the shared temporary directory."""
    jieba.setLogLevel("CRITICAL")
    tokenizer = jieba.Tokenizer()
    tokenizer.tmp_dir = str(tmp_path_factory.mktemp("jieba"))
    tokenizer.initialize()
    return tokenizer


def test_cuts_a_story_as_jieba_does(original):
    assert default_segmenter().cut(STORY) == list(original.cut(STORY, cut_all=False))


SAMPLE = (
    "".join(sorted(set(STORY)))
    + "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会"
)


@settings(max_examples=300)
@given(text=st.text(SAMPLE, max_size=60))
def test_cuts_any_mixture_as_jieba_does(original, text: str):
    assert default_segmenter().cut(text) == list(original.cut(text, cut_all=False))


@given(text=st.text(max_size=60))
def test_words_concatenate_to_the_text(text: str):
    assert "".join(default_segmenter().cut(text)) == text


def test_memory_and_work_stay_linear_where_jieba_copies_the_whole_path():
    # One row of 20 000 characters without a dictionary word. Quadratic copying would touch
    # 20 000 x 20 000 x 4 list slots; line counts stay the same per character.
    cut = default_segmenter().cut
    once, twice = _lines_run(cut, "龘" * 2000), _lines_run(cut, "龘" * 4000)
    assert twice <= 2.01 * once
    assert "".join(cut("龘" * 20_000)) == "龘" * 20_000


def _lines_run(cut, text: str) -> int:
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        cut(text)
    finally:
        sys.settrace(before)
    return lines


def _cut_in_a_new_process(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        "from martlet.tokenizers.segmenter import default_segmenter\n"
        "print('|'.join(default_segmenter().cut('天空是蔚蓝色')))"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_is_silent_and_leaves_the_temporary_directory_alone(tmp_path: Path):
    temporary, cache = tmp_path / "tmp", tmp_path / "cache"
    temporary.mkdir()
    for _ in range(2):  # builds the cache, then reads it
        done = _cut_in_a_new_process(temporary, XDG_CACHE_HOME=str(cache))
        assert (done.returncode, done.stdout, done.stderr) == (0, "天空|是|蔚蓝色\n", "")
    assert list(temporary.iterdir()) == []
    assert [path.suffix for path in (cache / "martlet").iterdir()] == [".marshal"]


def test_works_without_a_home_that_can_be_written(tmp_path: Path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")  # no folder can be made below a file, not even by root
    done = _cut_in_a_new_process(tmp_path, HOME=str(in_the_way))
    assert (done.returncode, done.stdout, done.stderr) == (0, "天空|是|蔚蓝色\n", "")


def test_a_damaged_cache_is_built_anew(tmp_path: Path):
    path = tmp_path / "words.marshal"
    content = ({"天空": -1.0, "天": float("-inf")}, -20.0)
    segmenter._write_cache(path, content)
    assert segmenter._read_cache(path) == content
    path.write_bytes(path.read_bytes()[:-1])
    assert segmenter._read_cache(path) is None
    path.write_bytes(b"")
    assert segmenter._read_cache(path) is None


def test_words_added_to_jieba_by_others_change_nothing():
    before = default_segmenter().cut("张三丰说话")
    jieba.add_word("张三丰说话")
    try:
        assert default_segmenter().cut("张三丰说话") == before
    finally:
        jieba.del_word("张三丰说话")
