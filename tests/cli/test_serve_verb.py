"""What `martlet serve` refuses before anything starts; whole servers are in tests/server."""

import socket

import pytest

KEY = "sk-very-secret"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("no-such-model",), 3, "no model is called"),
        (("cpm1-mini", "no-such-model"), 3, "no model is called"),
        (("cpm1-mini", "--host", "0.0.0.0"), 2, "no API key"),
        (("cpm1-mini", "cpm1-mini"), 2, "two models"),
        (("cpm1-mini", "--host", "203.0.113.7", "--api-key", KEY), 2, "203.0.113.7"),
        (("cpm1-mini", "--api-key-file", "/nowhere/key"), 2, "/nowhere/key"),
        (("cpm1-mini", "--api-key", "two words"), 2, "API key"),
        (("cpm1-mini", "--timeout", "nan"), 2, "--timeout"),
        (("cpm1-mini", "--port", "65536"), 2, "--port"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(martlet, arguments, code, words):
    done = martlet("serve", "--port", "0", *arguments)
    assert done.code == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert KEY not in done.stderr
    assert "two words" not in done.stderr


@pytest.mark.parametrize("flags", [(), ("--kv-cache", "int8")])
def test_the_form_of_the_cache_reaches_the_processes_of_the_models(martlet, monkeypatch, flags):
    served = []
    monkeypatch.setattr("martlet.server.run.serve", lambda settings, _: served.append(settings))
    done = martlet("serve", "cpm1-mini", "--port", "0", *flags)
    assert done.code == 0
    (settings,) = served
    (model,) = settings.models
    assert model.options["kv_cache"] == (flags[1] if flags else "none")


def test_a_port_that_is_taken_is_one_line(martlet):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = martlet("serve", "cpm1-mini", "--port", port)
    assert done.code == 2
    assert done.stderr == (
        f"error: port {port} of 127.0.0.1 is taken by another program; "
        "choose another with --port, or let --port 0 find one\n"
    )


@pytest.mark.parametrize("raw", [b"", b"\n", b"\xff\xfe"])
def test_a_key_file_without_a_key_is_named(martlet, tmp_path, raw):
    file = tmp_path / "key"
    file.write_bytes(raw)
    done = martlet("serve", "cpm1-mini", "--api-key-file", file)
    assert done.code == 2
    assert str(file) in done.stderr


@pytest.fixture
def served_settings(martlet, monkeypatch):
    """The settings that a command line would serve with."""
    seen = []
    monkeypatch.setattr(
        "martlet.server.run.serve", lambda settings, announcer: seen.append(settings)
    )

    def settings(*arguments):
        done = martlet("serve", *arguments)
        assert done.code == 0, done.stderr
        return seen.pop()

    return settings


def test_without_a_model_the_bundled_ones_are_served_with_slots_as_memory_allows(served_settings):
    settings = served_settings()
    assert [model.name for model in settings.models] == ["cpm1-mini", "cpm2-mini", "eva-mini"]
    assert all(model.options["slots"] == "auto" for model in settings.models)
    assert (settings.host, settings.port, settings.api_key) == ("127.0.0.1", 8000, None)


def test_a_folder_is_served_by_its_name_and_every_flag_arrives(
    served_settings, tiny_cpm1, tmp_path, monkeypatch
):
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY}\nsecond line\n")
    monkeypatch.chdir(tiny_cpm1.parent)
    settings = served_settings(
        *("./tiny-cpm1", "--api-key-file", key_file, "--host", "0.0.0.0", "--port", "0"),
        *("--allow-host", "box.lan", "--allow-origin", "https://a.example", "--max-queue", "3"),
        *("--max-queued-tokens", "100", "--max-tokens", "50", "--timeout", "20", "--drain", "5"),
        *("--slots", "2", "--context", "64", "--device", "cpu", "--threads", "1"),
    )
    (model,) = settings.models
    assert (model.name, model.folder) == ("tiny-cpm1", str(tiny_cpm1.resolve()))
    assert model.options["slots"] == 2
    assert model.options["context"] == 64
    assert model.options["device"] == "cpu"
    assert model.options["num_threads"] == 1
    assert settings.api_key == KEY
    assert settings.allowed_hosts == ("box.lan",)
    assert settings.allowed_origins == ("https://a.example",)
    assert (settings.max_queue, settings.max_queued_tokens, settings.max_tokens) == (3, 100, 50)
    assert (settings.request_seconds, settings.drain_seconds) == (20, 5)
