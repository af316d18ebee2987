"""One real server for as many tests as possible."""

import pytest

from .client import running_server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    """The three bundled models, two slots each, and short times for everything."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(
        folder,
        options={"slots": 2},
        max_queue=3,
        heartbeat_seconds=0.2,
        write_seconds=1.0,
    ) as server:
        yield server.wait_until_loaded()


@pytest.fixture
def server(shared_server):
    """The same without faults, before and after."""
    shared_server.faults()
    yield shared_server
    shared_server.faults()
