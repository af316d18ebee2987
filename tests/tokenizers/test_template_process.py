"""What a hostile chat template comes to: an error, in the time and memory that it is given."""

import resource
import time
from pathlib import Path

import pytest

from martlet.errors import ModelFileError, UnavailableError, UsageError
from martlet.tokenizers import template_process
from martlet.tokenizers.template_child import CPU_SECONDS
from martlet.tokenizers.template_process import MAX_SOURCE_CHARACTERS, TemplateProcess

SOURCES = Path(template_process.__file__).parents[1]
# Starting a process on a machine that is busy with other tests.
PATIENCE_SECONDS = 5.0

NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SHARED = (
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
)

NOT_REACHED = {
    "the classes behind a value": "{{ ''.__class__.__mro__ }}",
    "the globals of a function": "{{ lipsum.__globals__ }}",
    "the globals of a class": "{{ cycler.__init__.__globals__ }}",
    "the frame of a generator": "{{ (messages | map('upper')).gi_frame.f_back }}",
    "attributes that Python gives a meaning": "{% set n = namespace(__class__=1) %}",
    "such attributes, set later": "{% set n = namespace() %}{% set n['__init__'] = 1 %}",
    "files": "{% include '/etc/passwd' %}",
    "classes by way of a format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "other templates": "{% import 'x' as x %}",
    "what would change a list": "{% set x = [] %}{{ x.append(1) }}",
}
TOO_MUCH = {
    "a long range": "{{ range(10 ** 9) | list }}",
    "loops inside loops": NESTED,
    "a long string": "{{ 'a' * 10 ** 10 }}",
    "a string that doubles": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a wide number": "{{ '%0999999999d' % 1 }}",
    "a wide format": "{{ '{:999999999}'.format(1) }}{{ '{:999999999}'.format(1) }}" * 10,
    "a power of powers": "{{ 9 ** (9 ** 9) }}",
    "lists that hold each other twice": SHARED + "{{ n.x }}",
    "their JSON": SHARED + "{{ n.x | tojson }}",
    "their comparison": SHARED + "{% set y = n.x == n.x | list %}{{ n.x | string }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two macros that call each other twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}"
    "{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep conditions": "{% if x %}" * 3000 + "{% endif %}" * 3000,
    "a text of 100 MB": "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
    "many literals": "{{ [" + "1," * 100_000 + "] }}" * 1,
    "sorting without end": "{{ range(100000) | list | sort | map('string') | join | wordwrap(1) }}"
    * 9,
}


def _seconds_to_fail(source, match, variables=None):
    process = TemplateProcess(source, "m")
    start = time.perf_counter()
    with pytest.raises(ModelFileError, match=match) as caught:
        process.render(variables or {})
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    return time.perf_counter() - start


@pytest.mark.parametrize("what", NOT_REACHED)
def test_a_template_does_not_reach(what):
    _seconds_to_fail(NOT_REACHED[what], r"the chat template of m cannot be used: .*Error", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ '' | attr('__class__') }}",
        "{{ '%s' | format(self.__init__) }}",
        "{{ namespace.__init__ }}{{ dict.__base__ }}",
    ],
)
def test_what_is_shown_of_things_out_of_reach_is_nothing(source):
    assert TemplateProcess(source, "m").render({}) == ""


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_template_does_not_take_more_than_it_is_given(what):
    seconds = _seconds_to_fail(TOO_MUCH[what], "cannot be used: ")
    assert seconds < CPU_SECONDS + PATIENCE_SECONDS
    largest_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert largest_kib * 1024 < 700 << 20  # 512 MiB of addresses, and tests that ran before


def test_loops_inside_loops_end_with_the_time_of_the_processor():
    assert _seconds_to_fail(NESTED, "it takes more than 1 s") >= CPU_SECONDS * 0.9


def test_a_source_of_10_mb_is_not_even_read():
    with pytest.raises(ModelFileError, match="10,000,000 characters, more than the 262,144"):
        TemplateProcess("a" * 10_000_000, "m")
    assert len(TemplateProcess("a" * MAX_SOURCE_CHARACTERS, "m").render({})) == 262_144


def test_a_source_that_is_no_template_is_told_with_its_line():
    with pytest.raises(ModelFileError, match="TemplateSyntaxError in line 2: unexpected"):
        TemplateProcess("{% for x in y %}\n{{ x }", "m").facts()


def test_what_a_template_refuses_is_the_users_to_mend():
    process = TemplateProcess("{% if x %}{{ raise_exception('no x') }}{% endif %}ok", "m")
    with pytest.raises(UsageError, match="the chat template of m refuses these messages: no x"):
        process.render({"x": True})
    child = process._child
    assert process.render({"x": False}) == "ok"
    assert process._child is child  # nothing was wrong with it


def test_after_a_failure_the_next_text_is_rendered_by_a_new_process():
    process = TemplateProcess("{% for i in range(n) %}{{ 'a' * 10 ** i }}{% endfor %}", "m")
    assert process.render({"n": 2}) == "a" * 11
    child = process._child
    with pytest.raises(ModelFileError):
        process.render({"n": 12})
    assert child.returncode is not None
    assert process.render({"n": 1}) == "a"


def test_the_process_ends_with_the_template_and_without_the_parent():
    process = TemplateProcess("a", "m")
    process.render({})
    child = process._child
    del process
    assert child.returncode is not None
    process = TemplateProcess("a", "m")
    process.render({})
    process._child.stdin.close()  # as where the parent is killed
    assert process._child.wait(PATIENCE_SECONDS) == 0


def test_one_text_costs_a_millisecond_not_a_process():
    process = TemplateProcess("{% for m in x %}{{ m }}{% endfor %}", "m")
    process.render({"x": []})
    start = time.perf_counter()
    for _ in range(20):
        process.render({"x": ["hello"] * 20})
    assert (time.perf_counter() - start) / 20 < 0.05  # 0.3 ms on an idle machine


def test_the_process_knows_nothing_of_the_users_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    process = TemplateProcess("a", "m")
    process.render({})
    environment = Path(f"/proc/{process._child.pid}/environ").read_bytes()
    assert b"secret" not in environment


def test_where_no_process_can_be_started_that_is_said(monkeypatch):
    monkeypatch.setattr(template_process.sys, "executable", "/nowhere/python")
    with pytest.raises(UnavailableError, match=r"cannot be started: .*No such file"):
        TemplateProcess("a", "m").render({})


def test_environments_are_made_in_one_place():
    made = [path for path in SOURCES.rglob("*.py") if "Environment(" in path.read_text("utf-8")]
    assert [path.name for path in made] == ["template_child.py"]
    assert made[0].read_text("utf-8").count("Environment(") == 1
