"""The verbs of the hub in processes of their own, since the hub's variables are read at import."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import scan_cache_dir

from . import hub_server
from .conftest import MODEL_FILES, WEIGHTS

NAME = "some/model"
LIMIT = 200_000  # bytes that a file may have
# In the process of the verb: any socket ends it with a number that no verb gives.
NO_SOCKETS = """
import os, socket, sys
class Refusing(socket.socket):
    def __init__(self, *args, **kwargs):
        os._exit(77)
socket.socket = Refusing
socket.create_connection = socket.getaddrinfo = lambda *args, **kwargs: os._exit(77)
from martlet.cli.__main__ import main
main()
"""


@pytest.fixture
def environment(hub, tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    return {
        **environment,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }


@pytest.fixture
def martlet(environment):
    def call(*argv, code=None, **variables):
        program = ["-m", "martlet.cli"] if code is None else ["-c", code]
        return subprocess.run(
            [sys.executable, *program, *argv],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return call


def test_a_model_is_pulled_listed_and_removed(hub, martlet, tmp_path):
    hub.add(NAME, MODEL_FILES)
    done = martlet("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert f"fetching {NAME} at 111111111111: 4 files" in done.stderr
    assert "left out: modeling_tiny.py, pytorch_model.bin" in done.stderr
    assert "verified" in done.stdout
    assert scan_cache_dir(tmp_path / "hf" / "hub").repos
    (entry,) = (
        entry for entry in json.loads(martlet("list", "--json").stdout) if entry["origin"] == "hub"
    )
    assert (entry["name"], entry["family"], entry["size_bytes"]) == (NAME, "llama", len(WEIGHTS))
    refused = martlet("rm", NAME)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    removed = json.loads(martlet("rm", NAME, "--yes", "--json").stdout)
    assert removed["freed_bytes"] >= len(WEIGHTS)
    assert not scan_cache_dir(tmp_path / "hf" / "hub").repos


def test_pull_as_json_names_every_file_and_hash(hub, martlet):
    hub.add(NAME, MODEL_FILES)
    facts = json.loads(martlet("pull", NAME, "--json").stdout)
    assert facts["fetched_bytes"] == facts["total_bytes"]
    assert {file["name"] for file in facts["files"]} >= {"config.json", "model.safetensors"}
    assert facts["left_out"] == ["modeling_tiny.py", "pytorch_model.bin"]
    again = json.loads(martlet("pull", NAME, "--json").stdout)
    assert again["fetched_bytes"] == 0
    assert again["path"] == facts["path"]


def test_offline_no_socket_is_opened(hub, martlet, environment):
    hub.add(NAME, MODEL_FILES)
    assert martlet("pull", NAME).returncode == 0
    here = martlet("show", NAME, "--offline", code=NO_SOCKETS)
    assert here.returncode != 77
    assert "not in the cache" not in here.stderr
    for argv, variables in (
        (("show", "other/model", "--offline"), {}),
        (("show", "other/model"), {"HF_HUB_OFFLINE": "1"}),
        (("pull", "other/model"), {"HF_HUB_OFFLINE": "1"}),
    ):
        done = martlet(*argv, code=NO_SOCKETS, **variables)
        assert done.returncode == 3, done.stderr
        assert "other/model is not in the cache" in done.stderr
    # The watch itself sees a socket.
    assert martlet("pull", "other/model", code=NO_SOCKETS).returncode == 77


@pytest.mark.parametrize(
    ("variables", "code", "says"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 5, "hf-mirror.com"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "LC_ALL": "zh_CN.UTF-8"}, 5, "镜像"),
        ({"HF_ENDPOINT": "huggingface.co"}, 2, "HF_ENDPOINT is 'huggingface.co'"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "long"}, 2, "HF_HUB_DOWNLOAD_TIMEOUT"),
        ({"HF_TOKEN": "with a space"}, 2, "the token for the hub"),
    ],
)
def test_what_is_wrong_with_the_network_is_one_line(martlet, variables, code, says):
    quick = {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = martlet("pull", NAME, code=FEW_TRIES, **{**quick, **variables})
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# Nobody wants to wait for the pauses between tries.
FEW_TRIES = """
from martlet.hub import retries
retries._LONGEST_WAIT_SECONDS = 0.01
from martlet.cli.__main__ import main
main()
"""


@pytest.mark.parametrize("verb", ["pull", "show"])
def test_a_bad_name_gives_3_before_any_socket(martlet, verb):
    done = martlet(verb, "a/%2e%2e/c", code=NO_SOCKETS)
    assert done.returncode == 3, done.stderr


def test_ctrl_c_leaves_what_came_for_the_next_pull(hub, martlet, environment, tmp_path):
    hub.add(NAME, MODEL_FILES)
    never = threading.Event()
    hub.faults["model.safetensors"].append(hub_server.hold(never))
    pulling = subprocess.Popen(
        [sys.executable, "-m", "martlet.cli", "pull", NAME],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    parts = []
    while not any(part.stat().st_size >= len(WEIGHTS) // 3 for part in parts):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        parts = list((tmp_path / "hf").glob("hub/*/blobs/*.incomplete"))
    pulling.send_signal(signal.SIGINT)
    _, shown = pulling.communicate(timeout=15)
    never.set()
    assert pulling.returncode == 130
    assert "interrupted" in shown
    assert "Traceback" not in shown
    hub.seen.clear()
    assert martlet("pull", NAME).returncode == 0
    (request,) = hub.file_requests("model.safetensors")
    assert int(request.byte_range.removeprefix("bytes=").rstrip("-")) >= len(WEIGHTS) // 3


def test_a_disk_that_is_full_in_the_middle_gives_5_and_no_half_model(hub, environment, tmp_path):
    hub.add(NAME, MODEL_FILES)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}));"
    code = f"{limit} from martlet.cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "pull", NAME],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 5, done.stderr
    assert f"while writing {len(WEIGHTS):,} bytes" in done.stderr
    (snapshot,) = (tmp_path / "hf").glob("hub/*/snapshots/*")
    assert not any(snapshot.iterdir())
    assert not list((tmp_path / "hf").glob("hub/*/refs/*"))


def test_two_processes_that_pull_one_model_fetch_it_once(hub, environment):
    hub.add(NAME, MODEL_FILES)
    may_go_on = threading.Event()
    hub.faults["model.safetensors"].append(hub_server.hold(may_go_on))
    pulling = [
        subprocess.Popen(
            [sys.executable, "-m", "martlet.cli", "pull", NAME, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    deadline = time.monotonic() + 30
    while sum(seen.path.startswith("/api/models") for seen in hub.seen) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    may_go_on.set()
    paths = {json.loads(process.communicate(timeout=30)[0])["path"] for process in pulling}
    assert [process.returncode for process in pulling] == [0, 0]
    assert len(paths) == 1
    assert len(hub.file_requests("model.safetensors")) == 1


def test_help_and_import_leave_the_hubs_library_alone():
    code = (
        "import sys; from martlet.cli.verbs import run_command; import martlet; "
        "run_command(['--help']); run_command(['pull', '--help']); run_command(['rm', '--help']); "
        "assert not {'huggingface_hub', 'torch', 'urllib.request'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
