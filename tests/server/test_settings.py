import pytest

from martlet.errors import UsageError
from martlet.server.settings import ModelSettings, ServerSettings

MODEL = ModelSettings("cpm1-mini", "/models/cpm1-mini")


def settings(**options):
    return ServerSettings(models=(MODEL,), **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.6.7", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host):
    assert settings(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.evil"])
def test_any_other_address_needs_a_key(host):
    with pytest.raises(UsageError, match="no API key"):
        settings(host=host)
    assert not settings(host=host, api_key="k3y").is_loopback


@pytest.mark.parametrize("key", ["", "with space", "schlüssel", "line\nbreak"])
def test_a_key_must_fit_into_a_header(key):
    with pytest.raises(UsageError, match="API key") as caught:
        settings(api_key=key)
    assert not key or key not in str(caught.value)


def test_a_key_is_never_shown():
    assert "k3y" not in repr(settings(api_key="k3y"))


@pytest.mark.parametrize(
    "options",
    [
        {"port": 65536},
        {"max_queue": -1},
        {"max_queued_tokens": 0},
        {"max_jobs_per_client": 0},
        {"max_tokens": 0},
        {"request_seconds": 0},
        {"drain_seconds": float("nan")},
        {"heartbeat_seconds": float("inf")},
    ],
)
def test_a_number_out_of_range_is_named(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        settings(**options)


def test_two_models_of_one_name_are_refused():
    with pytest.raises(UsageError, match="two models"):
        ServerSettings(models=(MODEL, ModelSettings("cpm1-mini", "/elsewhere/cpm1-mini")))


def test_no_model_is_refused():
    with pytest.raises(UsageError, match="no model"):
        ServerSettings(models=())
