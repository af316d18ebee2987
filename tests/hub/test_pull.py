import dataclasses
import hashlib
import os
import shutil
import threading
import time

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from martlet.errors import (
    DiskFullError,
    DownloadError,
    ModelFileError,
    ModelNotFoundError,
    RepositoryChangedError,
    UsageError,
)
from martlet.hub.cache import CachedRepo
from martlet.hub.hub_id import parse_hub_id
from martlet.hub.pull import pull

from . import hub_server
from .conftest import MODEL_FILES, WEIGHTS
from .hub_server import cut_after, etag_of, status

NAME = "some/model"
WEIGHTS_ETAG = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def model(hub):
    return hub.add(NAME, MODEL_FILES)


def fetch(settings, name=NAME, **options):
    return pull(parse_hub_id(name), settings, **options)


def incomplete(settings):
    return CachedRepo(settings.cache_dir, NAME).incomplete(WEIGHTS_ETAG)


def test_what_a_pull_leaves_is_a_cache_of_the_hubs_own_library(hub, model, settings):
    plan = fetch(settings)
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS
    assert os.readlink(plan.path / "model.safetensors") == f"../../blobs/{WEIGHTS_ETAG}"
    for name in ("config.json", "model.safetensors"):
        found = try_to_load_from_cache(NAME, name, cache_dir=settings.cache_dir)
        assert found == str(plan.path / name)
    info = scan_cache_dir(settings.cache_dir)
    assert not info.warnings
    (repo,) = info.repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash) == (NAME, model.commit)
    assert revision.refs == {"main"}
    assert not list(settings.cache_dir.glob("**/*.incomplete"))
    for file in revision.files:
        assert file.blob_path.name == etag_of(file.file_path.read_bytes())


def test_pickles_and_code_are_left_out_and_said_so_before_the_first_byte(hub, model, settings):
    plans = []

    def announce(plan):
        plans.append(plan)
        assert not hub.file_requests("model.safetensors")

    plan = fetch(settings, announce=announce)
    assert plans == [plan]
    assert plan.left_out == ("modeling_tiny.py", "pytorch_model.bin")
    assert {path.name for path in plan.path.iterdir()} == set(MODEL_FILES) - set(plan.left_out)
    for name in plan.left_out:
        assert not hub.file_requests(name)
    assert plan.total_bytes == plan.missing_bytes
    assert plan.total_bytes == sum(file.size_bytes for file in plan.files)


def test_a_second_pull_fetches_nothing_and_only_asks_for_the_list(hub, model, settings):
    fetch(settings)
    hub.seen.clear()
    assert fetch(settings).missing_bytes == 0
    assert [seen.path for seen in hub.seen] == [f"/api/models/{NAME}/revision/main"]


def test_a_new_revision_fetches_only_the_files_that_changed(hub, model, settings):
    first = fetch(settings)
    model.files["config.json"] = b'{"model_type": "llama", "vocab_size": 9}'
    model.commit = "2" * 40
    hub.seen.clear()
    second = fetch(settings)
    assert second.path != first.path
    assert (second.path / "config.json").read_bytes() == model.files["config.json"]
    assert (first.path / "config.json").read_bytes() == MODEL_FILES["config.json"]
    assert second.missing_bytes == len(model.files["config.json"])
    assert not hub.file_requests("model.safetensors")
    assert CachedRepo(settings.cache_dir, NAME).commit_of("main") == "2" * 40


def test_a_cut_connection_goes_on_where_it_was(hub, model, settings):
    hub.faults["model.safetensors"].extend([cut_after(110_000), cut_after(50_000)])
    plan = fetch(settings)
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [seen.byte_range for seen in hub.file_requests("model.safetensors")]
    assert ranges == [None, "bytes=110000-", "bytes=160000-"]


def test_what_an_earlier_pull_left_is_not_fetched_again(hub, model, settings):
    incomplete(settings).parent.mkdir(parents=True)
    incomplete(settings).write_bytes(WEIGHTS[:123_456])
    reports = []
    plan = fetch(settings, progress=lambda *report: reports.append(report))
    assert plan.total_bytes - plan.missing_bytes == 123_456
    assert [s.byte_range for s in hub.file_requests("model.safetensors")] == ["bytes=123456-"]
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS
    assert reports[-1][:2] == (plan.total_bytes, plan.total_bytes)
    assert not incomplete(settings).exists()


@pytest.mark.parametrize("left", [WEIGHTS[:-1] + b"\0", b"\0" * 5000, WEIGHTS + b"longer"])
def test_an_earlier_piece_with_wrong_bytes_is_fetched_anew(hub, model, settings, left):
    incomplete(settings).parent.mkdir(parents=True)
    incomplete(settings).write_bytes(left)
    plan = fetch(settings)
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_piece_that_is_already_whole_is_only_verified(hub, model, settings):
    incomplete(settings).parent.mkdir(parents=True)
    incomplete(settings).write_bytes(WEIGHTS)
    fetch(settings)
    assert not hub.file_requests("model.safetensors")


@pytest.mark.parametrize(
    "fault", [hub_server.ignore_range, hub_server.other_range, status(416), status(500)]
)
def test_a_server_that_cannot_go_on_is_asked_from_the_start(hub, model, settings, fault):
    hub.faults["model.safetensors"].extend([cut_after(10_000), fault])
    reports = []
    plan = fetch(settings, progress=lambda *report: reports.append(report))
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS
    assert reports[-1][:2] == (plan.total_bytes, plan.total_bytes)


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(hub, model, settings):
    def cut_from_the_start(handler, content):
        handler.answer(200, content[:10_000], length=len(content))

    hub.faults["model.safetensors"].extend([cut_from_the_start] * 50)
    with pytest.raises(DownloadError, match=r"ended after 10,000 of 300,000 bytes"):
        fetch(settings)
    assert len(hub.file_requests("model.safetensors")) == settings.tries


def test_corrupt_bytes_are_fetched_once_more(hub, model, settings):
    hub.faults["model.safetensors"].append(hub_server.corrupt)
    plan = fetch(settings)
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [s.byte_range for s in hub.file_requests("model.safetensors")] == [None, None]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_that_stay_corrupt_are_told_by_file_and_range_and_not_kept(
    hub, model, settings, name
):
    hub.faults[name].extend([hub_server.corrupt] * 2)
    with pytest.raises(DownloadError) as caught:
        fetch(settings)
    size = len(MODEL_FILES[name])
    assert f"{NAME}/{name}: bytes 0-{size - 1:,} came twice" in str(caught.value)
    assert etag_of(MODEL_FILES[name]) in str(caught.value)
    assert caught.value.exit_code == 5
    repo = CachedRepo(settings.cache_dir, NAME)
    etag = etag_of(MODEL_FILES[name])
    assert not repo.incomplete(etag).exists()
    assert not repo.blob(etag).exists()
    assert not any(repo.snapshot(model.commit).iterdir())


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (hub_server.longer, "300,008 bytes to come for 300,000"),
        (hub_server.longer_without_a_length, "the server has more than that"),
        (hub_server.shorter, "299,990 bytes to come for 300,000"),
    ],
)
def test_a_length_that_is_not_the_listed_one_is_an_error(hub, model, settings, fault, says):
    hub.faults["model.safetensors"].append(fault)
    with pytest.raises(DownloadError, match=says):
        fetch(settings)
    assert not CachedRepo(settings.cache_dir, NAME).blob(WEIGHTS_ETAG).exists()


def test_a_stalled_server_is_left_and_asked_again(hub, model, settings):
    hub.faults["model.safetensors"].append(hub_server.stall(5))
    start = time.monotonic()
    plan = fetch(settings)
    assert time.monotonic() - start < 4
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.file_requests("model.safetensors")[1].byte_range == "bytes=100-"


@pytest.mark.parametrize("number", [400, 403, 404, 503])
def test_another_host_that_refuses_is_asked_by_a_new_address(hub, model, settings, number):
    hub.faults["model.safetensors"].append(status(number))
    fetch(settings)
    shutil.rmtree(settings.cache_dir)
    hub.faults["model.safetensors"].extend([status(number)] * settings.tries)
    with pytest.raises(DownloadError, match=f"localhost:.* answers {number}"):
        fetch(settings)


@pytest.mark.parametrize("number", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again_and_then_given_up(hub, model, settings, number):
    hub.faults["config.json"].append(status(number))
    hub.listing_faults.append(status(number))
    fetch(settings)
    shutil.rmtree(settings.cache_dir)
    hub.faults["config.json"].extend([status(number)] * settings.tries)
    with pytest.raises(DownloadError, match=f"answers {number}"):
        fetch(settings)


def test_a_server_says_when_it_wants_to_be_asked_again(hub, model, settings):
    hub.listing_faults.append(status(429, Retry_After="1"))
    start = time.monotonic()
    fetch(settings)
    assert time.monotonic() - start >= 1


def test_a_file_that_is_listed_but_gone_is_a_download_error(hub, model, settings):
    hub.faults["config.json"].append(status(404))
    with pytest.raises(DownloadError, match=r"config.json: .* lists the file, but answers 404"):
        fetch(settings)


def test_a_token_goes_to_the_hub_and_to_no_other_host(hub, settings, monkeypatch):
    hub.add(NAME, MODEL_FILES, needs_token="hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(settings)
    assert {seen.token for seen in hub.seen if seen.host == "hub"} == {"Bearer hf_secret"}
    assert {seen.token for seen in hub.seen if seen.host == "cdn"} == {None}
    assert [seen for seen in hub.seen if seen.host == "cdn"]


def test_a_token_does_not_follow_a_redirect_of_the_list(hub, model, settings, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.listing_faults.append(
        hub_server.redirect(f"{hub.cdn}/api/models/{NAME}/revision/main?blobs=true")
    )
    fetch(settings)
    listings = {seen.host: seen.token for seen in hub.seen if seen.path.startswith("/api/")}
    assert listings == {"hub": "Bearer hf_secret", "cdn": None}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://localhost/x", "/loop"])
def test_a_redirect_leads_to_http_and_ends(hub, model, settings, target):
    if target == "/loop":
        target = f"/api/models/{NAME}/revision/main"
        hub.listing_faults.extend([hub_server.redirect(target)] * 20)
        says = "more than 10 redirects"
    else:
        hub.listing_faults.append(hub_server.redirect(target))
        says = "no https address"
    with pytest.raises(DownloadError, match=says):
        fetch(settings)


def test_a_gated_repository_says_that_a_token_is_needed_and_where(hub, settings, monkeypatch):
    hub.add(NAME, MODEL_FILES, needs_token="hf_right")
    with pytest.raises(DownloadError) as caught:
        fetch(settings)
    for word in (f"{hub.endpoint}/{NAME}", "HF_TOKEN", "hf auth login", "403"):
        assert word in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DownloadError, match="token that was sent does not suffice"):
        fetch(settings)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    monkeypatch.setenv("LC_ALL", "")
    with pytest.raises(DownloadError, match="该模型需要授权"):
        fetch(settings)


def test_unknown_repositories_and_revisions_are_not_found(hub, model, settings):
    with pytest.raises(ModelNotFoundError, match="knows no model other/model"):
        fetch(settings, "other/model")
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        fetch(settings, f"{NAME}@v9")
    assert not settings.cache_dir.exists()


def test_a_revision_with_a_slash_is_one_part_of_the_address(hub, model, settings):
    model.tags["refs/pr/1"] = model.commit
    plan = fetch(settings, f"{NAME}@refs/pr/1")
    found = try_to_load_from_cache(
        NAME, "config.json", revision="refs/pr/1", cache_dir=settings.cache_dir
    )
    assert found == str(plan.path / "config.json")


def test_the_proxy_of_the_environment_is_asked_unless_the_host_is_excepted(
    hub, settings, monkeypatch
):
    """The hub of the test is the proxy, too: it takes the path of whatever address it is given."""
    hub.add(NAME, {"x.gguf": b"GGUF"})
    monkeypatch.setenv("http_proxy", hub.endpoint)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    behind = dataclasses.replace(settings, endpoint="http://hub.invalid")
    assert fetch(behind).path.read_bytes() == b"GGUF"
    monkeypatch.setenv("no_proxy", "hub.invalid")
    shutil.rmtree(settings.cache_dir)
    with pytest.raises(DownloadError, match=r"hub\.invalid cannot be reached"):
        fetch(behind)


def test_a_host_that_does_not_answer_tells_of_mirrors(hub, settings, monkeypatch):
    hub.close()
    with pytest.raises(DownloadError) as caught:
        fetch(settings)
    assert "HF_ENDPOINT=https://hf-mirror.com" in str(caught.value)
    assert "镜像" not in str(caught.value)
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    with pytest.raises(DownloadError, match="镜像"):
        fetch(settings)


def test_the_room_on_the_disk_is_checked_before_the_first_byte(hub, model, settings, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError) as caught:
        fetch(settings)
    needed = sum(
        len(MODEL_FILES[name])
        for name in ("config.json", "tokenizer.json", "README.md", "model.safetensors")
    )
    assert f"{needed:,} bytes are needed, 300,000 are free" in str(caught.value)
    assert str(settings.cache_dir) in str(caught.value)
    assert {seen.path for seen in hub.seen} == {f"/api/models/{NAME}/revision/main"}
    incomplete(settings).parent.mkdir(parents=True)
    incomplete(settings).write_bytes(WEIGHTS[:1000])  # what is here needs no room
    fetch(settings)


def test_a_cache_that_cannot_be_written_says_so(hub, model, settings, tmp_path):
    settings.cache_dir.write_text("a file where the folder should be")
    with pytest.raises(UsageError, match="cannot be written"):
        fetch(settings)


def test_a_change_between_list_and_file_is_followed(hub, model, settings):
    changed = bytes(reversed(WEIGHTS))

    def push(handler, content):
        cut_after(10_000)(handler, content)
        model.files["model.safetensors"] = changed
        model.commit = "2" * 40

    hub.faults["model.safetensors"].append(push)
    plan = fetch(settings)
    assert plan.commit == "2" * 40
    assert (plan.path / "model.safetensors").read_bytes() == changed
    assert not incomplete(settings).exists()


def test_a_list_that_never_fits_the_files_is_an_error(hub, model, settings):
    def other_etag(handler, content):
        handler.answer(200, content, {"ETag": '"' + "0" * 40 + '"'})

    hub.faults["config.json"].extend([other_etag] * 5)
    with pytest.raises(RepositoryChangedError, match="changed on the server"):
        fetch(settings)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>please log in</html>",
        b"[]",
        b'{"sha": "main", "siblings": []}',
        b'{"sha": "' + b"1" * 40 + b'", "siblings": {}}',
        b"[" * 100_000,
    ],
)
def test_an_answer_that_is_no_list_is_an_error(hub, model, settings, body):
    hub.listing_faults.append(lambda handler, content: handler.answer(200, body))
    with pytest.raises(DownloadError, match="no list of a repository's files"):
        fetch(settings)


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a\\b", "x\0y", "a//b", "C:x"])
def test_a_name_that_leads_out_of_the_folder_is_never_fetched(hub, model, settings, name):
    model.files[name] = b"x"
    plan = fetch(settings)
    assert name not in plan.left_out
    assert name not in {file.name for file in plan.files}


def test_pickles_alone_are_refused_with_a_way_out(hub, settings):
    hub.add(NAME, {"config.json": b"{}", "pytorch_model.bin": b"x" * 2000})
    with pytest.raises(ModelFileError, match=r"as pickles .* `hf download .* martlet convert"):
        fetch(settings)
    hub.add(NAME, {"README.md": b"a data set"})
    with pytest.raises(ModelFileError, match=r"no model.safetensors, no shards and no GGUF"):
        fetch(settings)


def test_two_pulls_at_a_time_fetch_every_file_once(hub, model, settings):
    may_go_on = threading.Event()
    hub.faults["model.safetensors"].append(hub_server.hold(may_go_on))
    plans, files = [], set()

    def run():
        plans.append(fetch(settings, progress=lambda done, total, file: files.add(file)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not hub.file_requests("model.safetensors"):
        time.sleep(0.01)
    time.sleep(0.2)  # the second one has time to do it wrongly
    may_go_on.set()
    for thread in threads:
        thread.join()
    assert len(plans) == 2
    assert "waiting for model.safetensors" in files
    assert len(hub.file_requests("model.safetensors")) == 1


def test_an_error_of_one_file_stops_the_others_and_keeps_what_came(hub, model, settings):
    never = threading.Event()
    hub.faults["model.safetensors"].append(hub_server.hold(never))
    hub.faults["config.json"].append(status(404))
    with pytest.raises(DownloadError, match="404"):
        fetch(settings)
    never.set()


def test_giving_up_keeps_what_has_arrived_for_the_next_pull(hub, model, settings):
    never = threading.Event()
    hub.faults["model.safetensors"].append(hub_server.hold(never))

    def press_ctrl_c(done_bytes, total_bytes, file):
        if done_bytes > 150_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(settings, progress=press_ctrl_c)
    never.set()
    kept = incomplete(settings).stat().st_size
    assert 150_000 <= kept < len(WEIGHTS)
    hub.seen.clear()
    plan = fetch(settings)
    (request,) = hub.file_requests("model.safetensors")
    assert int(request.byte_range.removeprefix("bytes=").rstrip("-")) >= kept
    assert (plan.path / "model.safetensors").read_bytes() == WEIGHTS


def test_files_with_the_same_bytes_are_fetched_once(hub, settings):
    same = b"s" * 5000
    files = {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {}}'}
    shards = {f"model-0000{i}-of-00002.safetensors": same for i in (1, 2)}
    hub.add(NAME, {**files, **shards})
    reports = []
    plan = fetch(settings, progress=lambda *report: reports.append(report))
    assert sum(len(hub.file_requests(name)) for name in shards) == 1
    for name in shards:
        assert (plan.path / name).read_bytes() == same
    assert reports[-1][0] == reports[-1][1] == plan.total_bytes
