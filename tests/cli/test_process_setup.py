"""Ctrl-C during imports and missing standard streams, each in a process of its own."""

import signal
import subprocess
import sys

import pytest

MARTLET = (sys.executable, "-m", "martlet")
INTERRUPT = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
TAKE = "from martlet.cli import process\nprocess.take_interrupts()\n"


def python(code, folder, **options):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def deaf_module(folder):
    """A module that is interrupted while it is imported, and loses the exception."""
    inner = "".join(f"    {line}\n" for line in INTERRUPT.splitlines())
    (folder / "deaf.py").write_text(f"try:\n{inner}except BaseException:\n    print('lost')\n")


@pytest.mark.parametrize("statement", ["import deaf", "importlib.import_module('deaf')"])
def test_ctrl_c_while_the_command_line_imports_ends_the_process_at_once(tmp_path, statement):
    deaf_module(tmp_path)
    as_room = f"exec({statement!r}, {{'__name__': 'martlet.cli.write', 'importlib': importlib}})"
    done = python(TAKE + f"import importlib\n{as_room}\nprint('went on')", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_during_an_import_in_the_middle_of_the_work_is_an_exception(tmp_path):
    deaf_module(tmp_path)
    done = python(TAKE + "import deaf\nprint('cleaned up')", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "lost\ncleaned up\n", "")


def test_ctrl_c_at_any_other_time_is_an_exception(tmp_path):
    inner = "".join(f"    {line}\n" for line in INTERRUPT.splitlines())
    done = python(
        TAKE + f"try:\n{inner}except KeyboardInterrupt:\n    print('cleaned up')", tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "cleaned up\n", "")


def test_a_sigint_that_the_parent_ignores_stays_ignored(tmp_path):
    done = python(
        TAKE + INTERRUPT + "print('went on')",
        tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout) == (0, "went on\n")


@pytest.mark.parametrize(
    ("closed", "code", "stdout", "stderr"),
    [
        (">&-", 0, "", "has a name too"),
        ("2>&-", 0, "cpm1-mini", ""),
        (">&- 2>&- <&-", 0, "", ""),
    ],
)
def test_a_stream_that_is_closed_is_written_to_nobody(closed, code, stdout, stderr):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *MARTLET, "list"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert stdout in done.stdout
    assert stderr in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_stdin_is_said_so():
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *MARTLET, "write", "cpm1-mini"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: stdin is closed")
