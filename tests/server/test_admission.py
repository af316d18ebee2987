import pytest

from martlet.errors import ContextLengthError, OverloadedError
from martlet.server.admission import Admission, Cost, Limits, bounded_retry_after, cost_of


def write_job(prompt, num_choices=1, **params):
    return {
        "task": {"kind": "write", "prompt": prompt},
        "params": params,
        "num_choices": num_choices,
        "top_logprobs": None,
        "format": None,
    }


def admit(admission, job_id, prompt_tokens=10, output_tokens=10, client=""):
    cost = Cost(prompt_tokens, [output_tokens], client)
    refusal = admission.refusal(cost)
    if refusal is None:
        admission.add(job_id, cost)
    return refusal


@pytest.mark.parametrize(
    ("task", "tokens"),
    [
        ({"kind": "write", "prompt": "却说那老汉"}, 5),
        ({"kind": "complete", "prompt": [5, 6, 7]}, 3),
        ({"kind": "chat", "messages": [{"role": "user", "content": "你好"}] * 2}, 4),
        (
            {
                "kind": "chat",
                "messages": [{"role": "assistant", "content": "好", "reasoning_content": "你好"}],
            },
            3,
        ),
        ({"kind": "fill", "pieces": ["今天", "真好。"]}, 5),
        ({"kind": "embed", "inputs": ["一二", [1, 2, 3]]}, 5),
        ({"kind": "tokenize", "text": "一二"}, 2),
        ({"kind": "detokenize", "token_ids": [4, 5]}, 2),
    ],
)
def test_a_character_counts_as_a_token_and_so_does_an_id_whatever_is_asked(task, tokens):
    job = {**write_job(""), "task": task}
    assert cost_of(job, "").prompt_tokens == tokens


def test_choices_multiply_what_is_read_and_written():
    cost = cost_of(write_job("却说", num_choices=3, max_tokens=50), "me")
    assert (cost.prompt_tokens, cost.unwritten_tokens, cost.client) == (6, [50] * 3, "me")


def test_jobs_wait_beyond_the_free_slots_up_to_the_limit():
    admission = Admission(Limits(max_queue=2, max_queued_tokens=1000))
    admission.num_slots = 2
    assert [admit(admission, str(i)) for i in range(4)] == [None] * 4
    refusal = admit(admission, "4")
    assert refusal.reason == "queue"
    assert isinstance(refusal.error, OverloadedError)
    admission.start("0")
    admission.start("1")
    assert admit(admission, "4").reason == "queue"  # both slots are taken, two wait
    admission.remove("0")
    assert admit(admission, "4") is None


def test_without_a_queue_jobs_run_while_there_are_slots():
    admission = Admission(Limits(max_queue=0, max_queued_tokens=1000))
    assert admit(admission, "0") is None
    assert admit(admission, "1").reason == "queue"
    admission.start("0")
    assert admit(admission, "1").reason == "queue"
    admission.remove("0")
    assert admit(admission, "1") is None


def test_long_prompts_fill_the_queue_before_its_places_do_and_a_short_one_still_fits():
    admission = Admission(Limits(max_queue=32, max_queued_tokens=65536))
    refusals = [admit(admission, str(i), prompt_tokens=20_000) for i in range(5)]
    assert [refusal and refusal.reason for refusal in refusals] == [None] * 3 + ["tokens"] * 2
    assert admit(admission, "short", prompt_tokens=100) is None


def test_what_runs_is_not_counted_as_queued():
    admission = Admission(Limits(max_queue=32, max_queued_tokens=100))
    admit(admission, "0", prompt_tokens=100)
    admission.start("0")
    assert admit(admission, "1", prompt_tokens=100) is None


def test_a_prompt_that_could_never_be_queued_is_no_matter_of_trying_again():
    admission = Admission(Limits(max_queue=32, max_queued_tokens=100))
    refusal = admit(admission, "0", prompt_tokens=101)
    assert refusal.reason == "length"
    assert isinstance(refusal.error, ContextLengthError)
    assert "101" in str(refusal.error)
    assert "100" in str(refusal.error)


def test_one_client_cannot_have_more_jobs_than_allowed():
    limits = Limits(max_queue=32, max_queued_tokens=1000, max_jobs_per_client=2)
    admission = Admission(limits)
    assert admit(admission, "0", client="me") is None
    assert admit(admission, "1", client="me") is None
    admission.start("0")
    assert admit(admission, "2", client="me").reason == "client"
    assert admit(admission, "3", client="you") is None
    admission.remove("1")
    assert admit(admission, "2", client="me") is None


def test_positions_count_those_before_that_wait():
    admission = Admission(Limits(max_queue=32, max_queued_tokens=1000))
    for job_id in "abc":
        admit(admission, job_id)
    assert [admission.position(job_id) for job_id in "abc"] == [0, 1, 2]
    admission.start("a")
    assert [admission.position(job_id) for job_id in "abc"] == [0, 0, 1]
    admission.remove("b")
    assert admission.position("c") == 0


def test_retry_after_is_the_work_that_is_left_over_the_measured_speed():
    admission = Admission(Limits(max_queue=32, max_queued_tokens=1000))
    admission.measure(20.0, num_texts=1)
    admit(admission, "0", output_tokens=200)
    admission.start("0")
    admit(admission, "1", output_tokens=100)
    assert admission.retry_after_seconds() == pytest.approx(15.0)
    admission.count_output("0", 0, 100)
    assert admission.retry_after_seconds() == pytest.approx(10.0)
    admission.measure(0.0, num_texts=1)  # nothing was written, which says nothing of the speed
    assert admission.retry_after_seconds() == pytest.approx(10.0)
    admission.measure(40.0, num_texts=1)
    assert 5.0 < admission.retry_after_seconds() < 10.0
    admission.remove("0")
    admission.remove("1")
    assert admission.retry_after_seconds() == 1.0


def test_several_texts_are_reckoned_faster_than_one_and_by_their_own_speed_once_it_is_known():
    admission = Admission(Limits(max_queue=32, max_queued_tokens=1000))
    admission.num_slots = 4
    admission.measure(10.0, num_texts=1)
    admission.add("0", Cost(10, [200, 200]))
    assert admission.retry_after_seconds() == pytest.approx(20.0)
    admission.measure(50.0, num_texts=2)
    assert admission.retry_after_seconds() == pytest.approx(8.0)
    # The one that is left is alone, and its brother's rest is not waited for.
    admission.start("0")
    admission.end_choice("0", 0)
    assert admission.retry_after_seconds() == pytest.approx(20.0)


@pytest.mark.parametrize(("seconds", "bounded"), [(-5, 1), (0.2, 1), (7, 7), (1e9, 120)])
def test_retry_after_is_from_1_to_120_seconds(seconds, bounded):
    assert bounded_retry_after(seconds) == bounded


def test_refusals_tell_when_to_come_back():
    admission = Admission(Limits(max_queue=0, max_queued_tokens=1000))
    admission.measure(10.0, num_texts=1)
    admit(admission, "0", output_tokens=500)
    error = admit(admission, "1").error
    assert error.retry_after_seconds == pytest.approx(50.0)
    assert "50 s" in str(error)
