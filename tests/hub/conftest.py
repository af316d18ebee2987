"""A hub that every test may fill, and a cache of its own."""

import json
import random

import pytest

from martlet.hub.settings import HubSettings

from .hub_server import HubServer

CONFIG = json.dumps({"model_type": "llama", "vocab_size": 8}).encode()
WEIGHTS = random.Random(0).randbytes(300_000)
MODEL_FILES = {
    "config.json": CONFIG,
    "tokenizer.json": b'{"model": {}}',
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle" * 500,
    "modeling_tiny.py": b"import os",
}


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def settings(hub, tmp_path):
    """Waits are short, so that a test of failures lasts no longer than one without."""
    return HubSettings(
        cache_dir=tmp_path / "cache",
        endpoint=hub.endpoint,
        timeout_seconds=1.0,
        tries=4,
        first_wait_seconds=0.01,
    )


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """No token of the user, no proxy, and a home without a cache."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
