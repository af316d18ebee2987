"""A real server in a process of its own: ``python served.py SETTINGS``, which are JSON.

``models`` are names of bundled models; ``options`` is how they are loaded. What the server
announces is printed, a line each.
"""

import json
import logging
import socket
import sys
from pathlib import Path

from martlet.hub.catalogue import resolve
from martlet.server import run
from martlet.server.settings import ModelSettings, ServerSettings

WORKER = (sys.executable, str(Path(__file__).with_name("controlled_worker.py")))


def say(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


class Lines:
    def listening(self, address):
        say({"event": "listening", "address": address})

    def settled(self, backend):
        states = {name: model.state for name, model in backend.models.items()}
        say({"event": "settled", "states": states})


def listen_with_small_buffers(host, port):
    """The kernel would take megabytes off the server's hands before a slow reader shows."""
    listener = listen(host, port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return listener


if __name__ == "__main__":
    listen, run._listen = run._listen, listen_with_small_buffers
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    given = json.loads(sys.argv[1])
    options = given.pop("options", {})
    models = tuple(
        ModelSettings(name, str(resolve(name).resolve()), options) for name in given.pop("models")
    )
    run.serve(ServerSettings(models, port=0, **given), Lines(), WORKER)
