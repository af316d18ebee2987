"""A real server in a process of its own: ``python served.py SETTINGS``, which are JSON.

``models`` are names of bundled models; ``options`` is how they are loaded. What the server
announces is printed, a line each.
"""

import json
import logging
import sys
from pathlib import Path

from martlet.hub.catalogue import resolve
from martlet.server.run import serve
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


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    given = json.loads(sys.argv[1])
    options = given.pop("options", {})
    models = tuple(
        ModelSettings(name, str(resolve(name).resolve()), options) for name in given.pop("models")
    )
    serve(ServerSettings(models, port=0, **given), Lines(), WORKER)
