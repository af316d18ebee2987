"""What can be said of the images without building them."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
import yaml

from martlet.cli.verbs import verbs
from martlet.hub.catalogue import BUNDLED
from martlet.server.routes import api_endpoints

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TARGETS = ("cpu", "cuda")


def instructions(path=DOCKERFILE):
    """(instruction, rest) for each, with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages():
    """What each stage is made from, and its own instructions."""
    found = {}
    for word, rest in instructions():
        if word == "FROM":
            name = rest.split()[-1]
            found[name] = (rest.split()[0], [])
        elif found:
            found[name][1].append((word, rest))
    return found


def stage(name):
    """All instructions that make a stage, those of the stages below it first."""
    parent, own = stages()[name]
    return [*(stage(parent) if parent in stages() else ()), *own]


def values(name, instruction):
    return [rest for word, rest in stage(name) if word == instruction]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_a_server_does_not_run_as_root(target):
    user, group = values(target, "USER")[-1].split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_whether_models_can_answer_is_asked_without_a_key_and_without_curl(target):
    (check,) = values(target, "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"
    (path,) = re.findall(r"127\.0\.0\.1:8000(/\w+)", command[-1])
    (endpoint,) = (e for e in api_endpoints() if (e.method, e.path) == ("GET", path))
    assert endpoint.is_public
    compile(command[-1], "HEALTHCHECK", "exec")


@pytest.mark.parametrize("target", TARGETS)
def test_signals_reach_the_server_itself_and_its_flags_exist(target):
    (program,) = (json.loads(rest) for rest in values(target, "ENTRYPOINT"))
    (arguments,) = (json.loads(rest) for rest in values(target, "CMD"))
    assert program == ["martlet"]
    serve = verbs.get_command(click.Context(verbs), arguments[0])
    assert serve.make_context("serve", arguments[1:]).params["host"] == "0.0.0.0"
    assert values(target, "STOPSIGNAL") == ["SIGTERM"]


def test_what_the_image_starts_refuses_to_start_without_a_key():
    (arguments,) = (json.loads(rest) for rest in values("cpu", "CMD"))
    environment = {k: v for k, v in os.environ.items() if k != "MARTLET_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "martlet", *arguments, "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "MARTLET_API_KEY" in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_models_and_compiled_kernels_lie_on_volumes(target):
    (volumes,) = (json.loads(rest) for rest in values(target, "VOLUME"))
    settings = dict(re.findall(r"((?:XDG|HF)_\w+)=(\S+)", " ".join(values(target, "ENV"))))
    where = (
        "import platformdirs as p; from martlet.hub.catalogue import Catalogue;"
        "from martlet.hub.settings import hub_settings;"
        "print(Catalogue().models_dir, hub_settings().cache_dir.parent);"
        "print(p.user_cache_path('martlet', appauthor=False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", where],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == volumes
    assert values(target, "WORKDIR")[-1] == volumes[0]


def test_every_base_image_has_a_version():
    bases = {parent for parent, _ in stages().values()} - set(stages())
    assert bases
    for base in bases:
        assert ":" in base
        assert not base.endswith(":latest")


def test_no_key_is_written_into_an_image_or_the_compose_file(compose):
    for word, rest in instructions():
        assert word not in ("ENV", "ARG") or not re.search("KEY|TOKEN|SECRET|PASSWORD", rest)
    for service in compose["services"].values():
        assert service["environment"]["MARTLET_API_KEY"].startswith("${MARTLET_API_KEY:?")


def test_the_wheel_is_made_from_what_the_build_context_has(tmp_path):
    kept = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copy(source, tmp_path / name)
    build = "import hatchling.build; hatchling.build.build_wheel('wheels')"
    (tmp_path / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, timeout=120)
    (wheel,) = (tmp_path / "wheels").glob("martlet-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("server/static/index.html", "kernels/cuda/linear.cu", "py.typed"):
        assert f"martlet/{needed}" in names
    for model in BUNDLED:
        assert f"martlet/zoo/{model}/model.safetensors" in names


def test_compose_offers_each_target_under_a_profile_of_its_name(compose):
    assert set(compose["services"]) == set(TARGETS)
    for name, service in compose["services"].items():
        assert service["profiles"] == [name]
        assert service["build"]["target"] == name
        assert (ROOT / service["build"]["dockerfile"]) == DOCKERFILE
        assert stage(name)


def test_compose_opens_ports_for_this_machine_only(compose):
    for service in compose["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")


def test_compose_gives_a_server_no_more_rights_than_it_needs(compose):
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "privileged" not in service


def test_compose_waits_longer_than_running_answers_get(compose):
    serve = verbs.get_command(click.Context(verbs), "serve")
    for service in compose["services"].values():
        arguments = serve.make_context("serve", service["command"][1:]).params
        seconds = float(re.fullmatch(r"(\d+)s", service["stop_grace_period"])[1])
        assert seconds > arguments["drain"]


def test_compose_reserves_a_gpu_for_cuda_alone(compose):
    (device,) = compose["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in compose["services"]["cpu"]


def test_hadolint_finds_nothing():
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (it is a part of the dev extra)")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_docker_compose_understands_the_file():
    command = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*command, "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        [*command, "-f", ROOT / "compose.yaml", "--profile", "*", "config", "--quiet"],
        env={**os.environ, "MARTLET_API_KEY": "key-of-a-test"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
