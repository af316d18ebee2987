"""What the pages about the server say works: every curl line, and the Python client."""

import re
import subprocess
from pathlib import Path

import pytest

from martlet.server.app import all_endpoints

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "server.md", DOCS / "zh" / "server.md"]
ADDRESS = "http://127.0.0.1:8000"


def commands(page):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [
        "curl " + rest.strip()
        for block in blocks
        for rest in re.split(r"^curl ", block, flags=re.MULTILINE)[1:]
    ]


CURLS = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(
    ("page", "command"), CURLS, ids=[f"{p.parent.name}-{i}" for i, (p, _) in enumerate(CURLS)]
)
def test_every_curl_line_is_answered(server, page, command):
    command = command.replace(ADDRESS, server.address)
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl -sS --fail-with-body ", 1)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_the_python_client_is_answered(server, capsys):
    text = PAGES[0].read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace(ADDRESS, server.address)
    names = {}
    exec(block, names)
    names["client"].close()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=["en", "zh"])
def test_every_path_is_on_the_page(page):
    text = page.read_text(encoding="utf-8")
    for endpoint in all_endpoints():
        path = endpoint.path.removeprefix("/v1").replace("/{model:path}", "")
        if endpoint.in_openapi or path == "/openapi.json":
            assert path in text, path


def test_every_code_of_an_error_is_on_the_page():
    source = "".join(p.read_text() for p in (DOCS.parent / "src/martlet/server").glob("*.py"))
    codes = set(re.findall(r"ApiError\(\s*\d+,\s*\"(\w+)\"", source))
    codes |= set(re.findall(r"Error, \"(\w+)\"\)", source))
    text = PAGES[0].read_text(encoding="utf-8")
    assert codes
    assert {code for code in codes if f"`{code}`" not in text} == set()
