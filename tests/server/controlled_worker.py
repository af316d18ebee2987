"""The process of a model as it is, but for faults that a file of the test asks for.

The file is JSON: ``step_seconds`` makes each step take longer, ``not_finite`` spoils what the model
computes, ``load_seconds`` makes loading take longer, ``killed`` ends the process that steps next as
the kernel does where memory runs out.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

CONTROL = Path(os.environ["MARTLET_TEST_CONTROL"])


def asked(name):
    try:
        return json.loads(CONTROL.read_text()).get(name)
    except (OSError, ValueError):  # not written yet, or just being written
        return None


def inject():
    import martlet.api
    from martlet.engine.batch import Batch
    from martlet.engine.batch_steps import HostSteps

    step, logits, load = Batch.step, HostSteps._logits, martlet.api.load

    def slow_step(self):
        if asked("killed"):
            CONTROL.unlink()  # once
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(asked("step_seconds") or 0)
        return step(self)

    def spoiled_logits(self, slots):
        computed = logits(self, slots)
        return computed * float("nan") if asked("not_finite") else computed

    def slow_load(*arguments, **options):
        time.sleep(asked("load_seconds") or 0)
        return load(*arguments, **options)

    Batch.step, HostSteps._logits, martlet.api.load = slow_step, spoiled_logits, slow_load


if __name__ == "__main__":
    import martlet.server.worker

    inject()
    code = martlet.server.worker.main(sys.argv)
    os._exit(code)
