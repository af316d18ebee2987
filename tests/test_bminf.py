import pytest

from martlet.bminf import CPM1, CPM2, EVA
from martlet.errors import UsageError


@pytest.fixture(scope="module")
def cpm2(tiny_cpm2):
    return CPM2(version=f"file://{tiny_cpm2}")


def test_cpm1_writes_and_says_whether_it_ended_by_itself(tiny_cpm1):
    model = CPM1(version=tiny_cpm1)
    text, stopped = model.generate(
        "天空是蔚蓝色，", max_tokens=8, top_n=5, top_p=1.0, temperature=0.5, presence_penalty=1
    )
    assert text
    assert stopped is False
    text, _ = model.generate("天空", max_tokens=8, top_n=1)
    shorter, stopped = model.generate("天空", max_tokens=8, top_n=1, stop_tokens=[text[3]])
    assert shorter == text[: text.index(text[3])]
    assert stopped is True


def test_top_n_of_one_is_greedy(tiny_cpm1):
    model = CPM1(version=tiny_cpm1)
    assert model.generate("天空", max_tokens=6, top_n=1)[0] == model.model.write(
        "天空", max_tokens=6, temperature=0, repetition_penalty=1
    )


def test_there_are_as_many_answers_as_blanks_with_their_places(cpm2):
    text = "北京<span>欢迎<span>你__。"
    answers = cpm2.fill_blank(text, max_tokens=6, top_n=5)
    assert [answer["position"] for answer in answers] == [2, 10]
    assert all(answer["text"] for answer in answers)


def test_only_the_named_blanks_are_filled(cpm2):
    text = "北京<span>欢迎<span>你。"
    answers = cpm2.fill_blank(text, spans_position=[10], max_tokens=6)
    assert [answer["position"] for answer in answers] == [10]
    with pytest.raises(UsageError, match="position 3"):
        cpm2.fill_blank(text, spans_position=[3])
    with pytest.raises(UsageError, match="no <span>"):
        cpm2.fill_blank("没有__")


def test_cpm2_writes(cpm2):
    text, stopped = cpm2.generate("天空", max_tokens=5)
    assert text
    assert not stopped


def test_eva_answers_the_last_of_the_turns(tiny_eva):
    model = EVA(version=tiny_eva)
    answer, stopped = model.dialogue(["你好", "你好", "你叫什么"], max_tokens=5)
    assert answer
    assert stopped is False
    with pytest.raises(UsageError, match="list of the turns"):
        model.dialogue("你好")


def test_a_freed_model_says_so(tiny_cpm1):
    model = CPM1(version=tiny_cpm1, memory_limit=1 << 30)
    model.free()
    with pytest.raises(UsageError, match="freed"):
        model.generate("天空")


def test_another_gpu_is_refused(tiny_cpm1):
    with pytest.raises(UsageError, match="device_idx is 1"):
        CPM1(device_idx=1, version=tiny_cpm1)
