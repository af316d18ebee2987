"""Runs the command line inside the test process, or as a person would at a terminal."""

import fcntl
import io
import itertools
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass

import pytest
import torch

from martlet.cli.verbs import run_command


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


class PipedInput(io.TextIOWrapper):
    """A stdin that is no terminal."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")


@pytest.fixture
def martlet(capsys, monkeypatch):
    """Call as ``martlet("write", folder, "text", stdin="...")``."""

    def call(*argv, stdin: str | bytes = b"") -> Outcome:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", PipedInput(raw))
        capsys.readouterr()
        code = run_command([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


class Terminal:
    """A person at a terminal of 80 columns: types, and waits for what is shown."""

    def __init__(self, *arguments, term="dumb", folder=None, env=None):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "martlet", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, "TERM": term, **(env or {})},
            # The terminal that sends SIGINT at Ctrl-C and SIGHUP when it is closed.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text, seconds=60):
        """Read until ``text`` is shown; gives what came before it, which is used up with it."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], (
                text,
                self.shown,
            )
            self.read()
        before, _, self.shown = self.shown.partition(text)
        return before

    def read(self):
        """Take what is shown now, or next."""
        self.shown += os.read(self.master, 65536).decode(errors="replace")

    def interrupt_until(self, text):
        """Type Ctrl-C until ``text`` is shown.

        While readline waits for a key it sees no signal that came just before it began to, but
        both when another one comes.
        """
        for _ in range(10):
            self.type("\x03")
            if select.select([self.master], [], [], 5)[0]:
                break
        self.wait_for(text)

    def type(self, text):
        os.write(self.master, text.encode())

    def ask(self, text, expected):
        """Type a line, and give what is shown from then on until the next prompt."""
        self.type(text + "\r")
        before = self.wait_for(expected)
        return before + expected + self.wait_for("> ")

    def leave(self):
        """Type Ctrl-D; the exit code."""
        self.type("\x04")
        return self.end()

    def end(self, signal_number=None):
        """Wait until it has ended, by this signal (again and again: see above); the exit code."""
        try:
            for _ in range(12):
                if signal_number is not None:
                    self.process.send_signal(signal_number)
                while select.select([self.master], [], [], 5)[0]:
                    self.read()
        except OSError:
            pass  # nobody is at the other end any more
        return self.process.wait(timeout=30)


@pytest.fixture
def terminal(tmp_path):
    """Start as ``terminal("chat", folder)``; what is still there at the end is killed."""
    started = []

    def start(*arguments, env=None, **options):
        env = {"XDG_STATE_HOME": str(tmp_path / "state"), **(env or {})}
        started.append(Terminal(*arguments, env=env, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        os.close(one.master)


THINKING_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif -%}
{%- endif -%}
"""


@pytest.fixture(scope="session")
def thinker(tmp_path_factory):
    """A folder as the hub has it, of a model that always thinks "hm" and then says "好!".

    Its layers do nothing; the head makes each token the certain successor of another.
    """
    from safetensors.torch import save_file

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("hub") / "thinker"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    library.add_tokens(["<think>", "</think>"])
    library.save(str(folder / "tokenizer.json"))
    end_id = library.token_to_id("<|im_end|>")
    files = {
        "tokenizer_config.json": {"chat_template": THINKING_TEMPLATE, "eos_token": "<|im_end|>"},
        "generation_config.json": {"eos_token_id": end_id, "temperature": 0.5},
        "config.json": {
            "model_type": "llama",
            "vocab_size": 320,
            "hidden_size": 320,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    said = library.encode("\n<think>hm</think>好!<|im_end|>", add_special_tokens=False).ids
    save_file(_successors(said, size=320), folder / "model.safetensors", {"format": "pt"})
    return folder


def _successors(token_ids, size):
    """Weights of a Llama of one layer after whose token i comes token i + 1 of these."""
    head = torch.zeros(size, size)
    for token_id, following_id in itertools.pairwise(token_ids):
        head[following_id, token_id] = 1.0
    layer = {f"self_attn.{name}_proj": torch.zeros(size, size) for name in "qkvo"}
    layer |= {f"mlp.{name}_proj": torch.zeros(32, size) for name in ("gate", "up")}
    layer |= {"mlp.down_proj": torch.zeros(size, 32)}
    layer |= {"input_layernorm": torch.ones(size), "post_attention_layernorm": torch.ones(size)}
    return {
        "model.embed_tokens.weight": torch.eye(size) * 4,
        "model.norm.weight": torch.ones(size),
        "lm_head.weight": head * 4,
        **{f"model.layers.0.{name}.weight": weight for name, weight in layer.items()},
    }
