import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
READMES = ("README.md", "README_zh.md")
USUAL_ADDRESS = "http://127.0.0.1:8000"
# These talk to a server; all others load a model themselves.
CLIENTS = ("fill_over_http.py", "ollama_style.py", "openai_client.py")
ALONE = sorted({path.name for path in EXAMPLES.glob("*.py")} - set(CLIENTS))


@pytest.fixture(scope="module")
def address():
    """Of a server with the bundled models."""
    command = [sys.executable, "-m", "martlet", "serve", "--port", "0", "--json"]
    # A key of whoever runs the tests would shut out what the READMEs show.
    environment = {name: value for name, value in os.environ.items() if name != "MARTLET_API_KEY"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            ready = [json.loads(process.stdout.readline()) for _ in range(2)][-1]
            assert {model["state"] for model in ready["models"]} == {"ready"}
            yield ready["address"]
        finally:
            process.terminate()


def run(*command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, cwd=EXAMPLES
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def num_chinese(text):
    return len(re.findall("[\u4e00-\u9fff]", text))


@pytest.mark.slow
@pytest.mark.parametrize("example", ALONE)
def test_each_example_runs_and_prints_chinese(example):
    assert num_chinese(run(example)) > 30


@pytest.mark.slow
@pytest.mark.parametrize("example", CLIENTS)
def test_each_client_gets_its_answer_from_a_server(example, address):
    assert num_chinese(run(example, address)) > 8


def test_the_client_without_a_package_gets_what_openais_client_gets(address):
    script = (
        "import sys, openai_client as e;"
        "print(''.join(e.ask_with_urllib(sys.argv[1])) == ''.join(e.ask_with_openai(sys.argv[1])))"
    )
    assert run("-c", script, address) == "True\n"


def blocks(page, language):
    """Code of a page that talks to a server, which is called by its usual address there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [block for block in found if f"{USUAL_ADDRESS}/" in block]


@pytest.mark.parametrize("page", READMES)
def test_the_python_client_in_the_readme_is_answered(page, address):
    (block,) = blocks(page, "python")
    assert num_chinese(run("-c", block.replace(USUAL_ADDRESS, address))) > 1


@pytest.mark.parametrize("page", READMES)
def test_the_curl_line_in_the_readme_is_answered(page, address):
    (block,) = blocks(page, "sh")
    command = block.replace(USUAL_ADDRESS, address).replace("curl ", "curl -sS --fail-with-body ")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(done.stdout)["blanks"]) == 2
