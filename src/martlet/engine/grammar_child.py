"""Tries a grammar out: how it ends when someone means harm must not matter to anything else.

Run by path as a child process (``python -I grammar_child.py PACKAGES``), where PACKAGES is the
folder that holds llguidance. The grammar comes on standard input; the answer is one JSON object on
standard output, {"error": "..."}, empty for none. Some schemas of a few kB take hours, and that in
native code, which nothing but the end of its process stops.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

ADDRESS_SPACE_BYTES = 1 << 30
CPU_SECONDS = 2

LIMITS = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
}
"""Bounds of llguidance: what making a grammar may cost, and each of its steps (about 10 ms)."""


class OneByteTokens:
    """A vocabulary of all bytes and an end, as llguidance asks for one."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()
    tokens = (*(bytes([byte]) for byte in range(256)), b"")

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text."""
        return list(text)


def try_grammar(llguidance: Any, grammar: str) -> str:
    """What is wrong with a grammar; empty for nothing."""
    wrapper = llguidance.TokenizerWrapper(OneByteTokens())
    tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=257)
    limits = llguidance.LLParserLimits(**LIMITS)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some of the work is put off until the first step
    return str(matcher.get_error())


def main() -> None:
    """Read, try, answer."""
    sys.path.append(sys.argv[1])
    import llguidance

    grammar = sys.stdin.read()
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The hard limit stays: past the soft one of time comes SIGXCPU, which tells what happened.
        resource.setrlimit(limit, (value, hard))
    json.dump({"error": try_grammar(llguidance, grammar)}, sys.stdout)


if __name__ == "__main__":
    main()
