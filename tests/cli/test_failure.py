import errno

import click
import pytest
import torch

from martlet import errors
from martlet.cli import failure


@pytest.mark.parametrize("name", [n for n in errors.__all__])
def test_an_error_of_ours_gives_its_own_message_and_exit_code(name):
    error = getattr(errors, name)("what happened,\n  and what to do")
    line, code = failure.describe(error)
    assert line == "error: what happened, and what to do"
    assert code == error.exit_code


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_gives_130(error):
    assert failure.describe(error) == ("interrupted", 130)


def test_a_usage_error_names_the_help_to_read():
    context = click.Context(click.Command("write"), info_name="write")
    line, code = failure.describe(click.UsageError("No such option: --colour.", ctx=context))
    assert line == "error: No such option: --colour; see `write --help`"
    assert code == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_gives_4_and_a_way_out(error):
    line, code = failure.describe(error)
    assert line.startswith("error: out of memory")
    assert "--quantize int4" in line
    assert code == 4


def test_a_full_disk_gives_5_and_names_the_file():
    line, code = failure.describe(OSError(errno.ENOSPC, "No space left on device", "model.bin"))
    assert "model.bin" in line
    assert code == 5


@pytest.mark.parametrize("error", [ValueError("odd\nthing"), RuntimeError()])
def test_anything_else_is_one_line_that_tells_of_the_traceback(error):
    line, code = failure.describe(error)
    assert line.startswith(f"error: {type(error).__name__}")
    assert "martlet --debug" in line
    assert "\n" not in line
    assert code == 1


def test_debug_shows_the_traceback_of_a_bug_but_not_of_a_typing_error():
    assert failure.wants_traceback(["--debug", "list"], ValueError())
    assert not failure.wants_traceback(["list"], ValueError())
    assert not failure.wants_traceback(["--debug", "list"], click.UsageError("no"))
    assert not failure.wants_traceback(["write", "m", "--debug"], ValueError())
