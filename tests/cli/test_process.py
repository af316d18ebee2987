"""The command line as a process of its own: imports, signals, pipes, exit codes."""

import os
import signal
import subprocess
import sys

import pytest

MARTLET = (sys.executable, "-m", "martlet")


def run(*arguments, **options):
    return subprocess.run(
        [*MARTLET, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


def test_help_and_import_load_neither_torch_nor_numpy_nor_rich():
    code = (
        "import sys, martlet\n"
        "from martlet.cli.verbs import run_command, VERBS\n"
        "codes = [run_command(['--help'])] + [run_command([v, '--help']) for v in VERBS]\n"
        "heavy = {'torch', 'numpy', 'rich', 'jieba', 'sentencepiece', 'tokenizers'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)), set(codes))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "LOADED [] {0}"


def test_the_installed_command_and_the_module_are_the_same():
    beside = os.path.join(os.path.dirname(sys.executable), "martlet")
    script = subprocess.run([beside, "--help"], capture_output=True, text=True, timeout=60)
    assert script.stdout == run("--help").stdout
    assert "perplexity" in script.stdout


def test_results_go_to_stdout_and_everything_else_to_stderr(tiny_cpm1):
    done = run("run", tiny_cpm1, "--max-tokens", "3", "--seed", "1", input="却说那老汉")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert "tokens/s" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("fill", "cpm2-mini", "没有空"), 2),
        (("write", "cpm1-mini", "却说", "--top-p", "7"), 2),
        (("write", "no-such-model", "却说"), 3),
        (("show", "DAMAGED"), 6),
    ],
)
def test_a_failure_is_one_line_on_stderr_and_the_exit_code(tmp_path, arguments, code):
    (tmp_path / "martlet.json").write_text("{not json")
    done = run(*(tmp_path if argument == "DAMAGED" else argument for argument in arguments))
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_while_writing_gives_130_and_a_clean_line(tiny_cpm1):
    process = subprocess.Popen(
        [*MARTLET, "write", str(tiny_cpm1), "却说那老汉", "--max-tokens", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1)  # it has begun to write
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout.endswith(b"\n")
    assert stderr == b"interrupted\n"


def test_a_reader_that_leaves_early_is_no_failure(tiny_cpm1):
    process = subprocess.Popen(
        [*MARTLET, "write", str(tiny_cpm1), "却说那老汉", "--max-tokens", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 0
    assert stderr == b""


def test_in_a_chat_ctrl_c_clears_the_line_and_ctrl_d_leaves(terminal, tiny_eva):
    # A dumb terminal has no line editing to speak of; tests/cli/repl has one that can do more.
    there = terminal("chat", tiny_eva, "--max-tokens", "3")
    there.wait_for("> ")
    there.ask("你好", "first token")
    there.interrupt_until("Ctrl-D leaves")
    there.wait_for("> ")
    there.ask("/reset", "all turns are forgotten")
    assert there.leave() == 0


def test_fills_stand_out_on_a_terminal_in_colour(terminal, tiny_cpm2):
    there = terminal(
        "fill", tiny_cpm2, "次日__。", "--max-tokens", "3", "--seed", "1", term="xterm-256color"
    )
    there.wait_for("次日\x1b[1;32m")
    there.wait_for("\x1b[0m。")
    assert there.end() == 0
