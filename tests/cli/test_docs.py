import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from martlet.cli.verbs import verbs
from martlet.errors import ModelNotFoundError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("generator", ["generate_cli.py", "generate_tables.py"])
def test_the_pages_are_what_the_help_texts_and_the_measurements_say(generator):
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / generator, "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")))
def test_every_link_between_the_pages_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "README_zh.md", "docs/python-api.md"])
def test_the_python_examples_run(page, monkeypatch, tiny_cpm1, tiny_cpm2, tiny_eva):
    folders = {"cpm1-mini": tiny_cpm1, "cpm2-mini": tiny_cpm2, "eva-mini": tiny_eva}

    def resolve(name):
        if name not in folders:
            raise ModelNotFoundError(name)
        return folders[name]

    monkeypatch.setattr("martlet.api.opening.locate", resolve)
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    )
    # What talks to a server is run by tests/test_examples.py, which has one.
    blocks = [block for block in blocks if "base_url=" not in block]
    assert blocks
    names = {"text": "却说那老汉推开门，只见一个人。"}
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")))
def test_every_command_line_in_the_pages_has_a_verb_and_flags_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for verb, rest in re.findall(r"\bmartlet ([a-z]+)([^\n|#]*)", block):
            command = verbs.get_command(click.Context(verbs), verb)
            assert command is not None, verb
            known = {name for parameter in command.params for name in parameter.opts}
            used = set(re.findall(r"--[a-z-]+", rest))
            assert used <= known | {"--help"}, (verb, used - known)
