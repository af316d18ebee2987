"""The real process of a model, with faults: python faulty_worker.py FAULTS SOCKET.

FAULTS is JSON; each may be left out:
    exit_at_once: exit with this code.
    slow_load_seconds: sleep so long before loading.
    raise_at_step: an exception that nobody expects, in this step with work, counted from 1; its
        message is ``secret``.
    slow_step_seconds: sleep so long before each step.
    out_of_memory_at_pass: memory runs out in this pass of decode steps.
    nan_mark: a text; requests whose prompt has it get logits that are no numbers.
    crash_mark: a text; a request whose prompt has it kills the process when it is prepared.
"""

import functools
import itertools
import json
import os
import signal
import sys
import time


def apply(faults):
    import martlet.api
    import martlet.engine.batch as batch
    import martlet.engine.batch_steps as batch_steps
    from martlet.api.model import Model

    _fail_to_load(martlet.api, faults)
    warms_up = _warms_up(batch.Batch)
    _fail_in_steps(batch.Batch, faults, warms_up)
    if "out_of_memory_at_pass" in faults:
        _run_out_of_memory(batch_steps, faults["out_of_memory_at_pass"], warms_up)
    _fail_by_prompt(Model, (batch, batch_steps), faults)


def _fail_to_load(api, faults):
    load = api.load

    @functools.wraps(load)
    def faulty(*arguments, **options):
        time.sleep(faults.get("slow_load_seconds", 0))
        return load(*arguments, **options)

    api.load = faulty


def _warms_up(batch_class):
    """Tells whether a batch warms up, which is no time for faults."""
    warm_up = batch_class.warm_up
    under_way = []

    @functools.wraps(warm_up)
    def noticed(*arguments, **options):
        under_way.append(True)
        try:
            return warm_up(*arguments, **options)
        finally:
            under_way.clear()

    batch_class.warm_up = noticed
    return lambda: bool(under_way)


def _fail_in_steps(batch_class, faults, warms_up):
    step = batch_class.step
    numbers = itertools.count(1)

    def faulty(self):
        if warms_up() or not self.state().num_running + self.state().num_waiting:
            return step(self)  # nothing to do is no step
        time.sleep(faults.get("slow_step_seconds", 0))
        if next(numbers) == faults.get("raise_at_step"):
            raise KeyError(faults["secret"])
        return step(self)

    batch_class.step = faulty


def _run_out_of_memory(batch_steps, at_pass, warms_up):
    run_stack = batch_steps.run_stack
    numbers = itertools.count(1)

    def faulty(*arguments, **options):
        if not warms_up() and next(numbers) == at_pass:
            raise MemoryError
        return run_stack(*arguments, **options)

    batch_steps.run_stack = faulty


def _fail_by_prompt(model_class, modules, faults):
    prepare = model_class.prepare
    marked = []  # constraints of marked requests: they stay the same objects

    def faulty_prepare(self, kind, payload, **options):
        text = json.dumps(payload, ensure_ascii=False)
        if "crash_mark" in faults and faults["crash_mark"] in text:
            os.kill(os.getpid(), signal.SIGKILL)
        prepared = prepare(self, kind, payload, **options)
        if "nan_mark" in faults and faults["nan_mark"] in text:
            marked.append(prepared.request.constraint)
        return prepared

    model_class.prepare = faulty_prepare
    choose = modules[1].choose

    def faulty_choose(request, sampler, logits):
        if any(request.constraint is constraint for constraint in marked):
            logits = logits * float("nan")
        return choose(request, sampler, logits)

    for module in modules:
        module.choose = faulty_choose


def main():
    faults = json.loads(sys.argv[1])
    if "exit_at_once" in faults:
        sys.stderr.write("the disk has gone\n")
        return faults["exit_at_once"]
    from martlet.server import worker

    apply(faults)
    return worker.main([sys.argv[0], sys.argv[2]])


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
