"""What a hostile chat template comes to: an error, in the time and memory that it is given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from martlet.errors import ModelFileError, UnavailableError, UsageError
from martlet.tokenizers import template_process
from martlet.tokenizers.template_child import CPU_SECONDS
from martlet.tokenizers.template_process import MAX_SOURCE_CHARACTERS, TemplateProcess

SOURCES = Path(template_process.__file__).parents[1]
# How long a process may take to end on a machine that is busy with other tests.
PATIENCE_SECONDS = 5.0
# What Python needs to start and to compile a template, beside the time that the template is given.
START_SECONDS = 1.0
# The addresses that it is given are 512 MiB.
MOST_BYTES = 600 << 20

# One render in an interpreter of its own, whose children are then that template's alone: the time
# is the processor's and says the same on a machine that is busy with other tests.
MEASURE = """
import json, resource, sys
from martlet.errors import ModelFileError
from martlet.tokenizers.template_process import TemplateProcess

process, problem = TemplateProcess(sys.stdin.read(), "m"), None
try:
    process.render({})
except ModelFileError as error:
    problem = str(error)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([problem, used.ru_utime + used.ru_stime, used.ru_maxrss << 10]))
"""

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


def _measured(source):
    """What a failed template says, the seconds of the processor and the bytes that it took."""
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, input=source, stdout=subprocess.PIPE, text=True, check=True)
    problem, seconds, largest_bytes = json.loads(done.stdout)
    _check_problem(problem)
    return problem, seconds, largest_bytes


def _check_problem(problem):
    assert problem.startswith("the chat template of m cannot be used: ")
    assert len(problem) < 500
    assert "\n" not in problem


@pytest.mark.parametrize("what", NOT_REACHED)
def test_a_template_does_not_reach(what):
    with pytest.raises(ModelFileError, match=r"cannot be used: .*Error") as caught:
        TemplateProcess(NOT_REACHED[what], "m").render({})
    _check_problem(str(caught.value))


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
    _, seconds, largest_bytes = _measured(TOO_MUCH[what])
    assert seconds < CPU_SECONDS + START_SECONDS
    assert largest_bytes < MOST_BYTES


def test_loops_inside_loops_end_with_the_time_of_the_processor():
    problem, seconds, _ = _measured(NESTED)
    assert "it takes more than 1 s" in problem
    assert seconds >= CPU_SECONDS * 0.9


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


def test_one_process_renders_all_texts():
    process = TemplateProcess("{% for m in x %}{{ m }}{% endfor %}", "m")
    process.render({"x": []})
    child = process._child
    for _ in range(20):
        assert process.render({"x": ["hello"] * 20}) == "hello" * 20
    assert process._child is child


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
