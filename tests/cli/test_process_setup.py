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


def test_ctrl_c_during_an_import_ends_the_process_even_where_the_exception_would_be_lost(tmp_path):
    inner = "".join(f"    {line}\n" for line in INTERRUPT.splitlines())
    (tmp_path / "deaf.py").write_text(f"try:\n{inner}except BaseException:\n    pass\n")
    done = python(TAKE + "import deaf\nprint('went on')", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


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
        (">&-", 0, "", "have names too"),
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
