"""simonw's llm, in its own process, told of the server by its own file."""

import os
import shutil
import subprocess
import sys

import pytest

MODELS = """\
- model_id: martlet-chat
  model_name: eva-mini
  api_base: {address}/v1
- model_id: martlet-write
  model_name: cpm1-mini
  api_base: {address}/v1
  completion: true
"""


@pytest.fixture
def llm(server, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(address=server.address))
    command = shutil.which("llm", path=os.path.dirname(sys.executable))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments):
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_llm_chats(llm):
    assert llm("-m", "martlet-chat", "-o", "seed", "1", "-o", "max_tokens", "12", "你好").strip()


@pytest.mark.slow
def test_llm_goes_on_with_a_text(llm):
    assert llm("-m", "martlet-write", "-o", "max_tokens", "12", "-o", "seed", "1", "清晨").strip()
