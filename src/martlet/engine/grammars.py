"""From a JSON schema to a grammar over the tokens of a vocabulary."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from martlet.engine.grammar_child import CPU_SECONDS, LIMITS
from martlet.engine.schema_check import ANY_OBJECT, literals
from martlet.errors import UsageError
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["Grammars", "grammars_of"]

_CHILD = Path(__file__).with_name("grammar_child.py")
# The child bounds the time that it computes; this is for one that a busy machine does not let run.
_TIMEOUT_SECONDS = 5.0
_MOST_KEPT = 16  # up to 40 MB each, where they are made to be large
# One space at most behind a comma or colon: a model that likes spaces must come to an end.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Text that can only go on in one way is not cut into tokens for the model, which may know others.
_HEAD = '%llguidance {"no_forcing": true}'
_NEEDED = '{}[]":,-.0123456789truefalsn'
# An error says where in the grammar it is, and shows the grammar, neither of which anyone wrote.
_PLACE = re.compile(r"^at [\d():]+ *|failed to compile JSON schema: *|\n +\d+ \|.*|<state>.*", re.S)


class Grammars:
    """Makes grammars for one vocabulary, and keeps those that were asked for last.

    Raises:
        UsageError: llguidance is not installed, or the vocabulary cannot write JSON.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._llguidance = _llguidance()
        table = tokenizer.token_bytes()
        control_ids = tokenizer.special.control_ids()
        self.end_id = min(control_ids, default=0)
        """The id that stands for the end in masks, whatever token ends a text of the model."""
        self._pieces = frozenset(
            piece for i, piece in enumerate(table) if piece and i not in control_ids
        )
        self._longest = max(map(len, self._pieces), default=0)
        if missing := sorted({mark for mark in _NEEDED if not self._can_write(mark)}):
            raise UsageError(
                "this model's vocabulary cannot write JSON: it has no token for "
                f"{' '.join(missing[:8])}; ask for plain text, or use another model"
            )
        wrapper = self._llguidance.TokenizerWrapper(_Entries(table, control_ids, self.end_id))
        self._tokenizer = self._llguidance.LLTokenizer(
            wrapper, n_vocab=len(table), eos_token=self.end_id
        )
        self._leads = _drops_spaces(tokenizer, table)
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, schema: dict[str, Any]) -> Any:
        """A matcher (``llguidance.LLMatcher``) at the beginning of a text of this schema.

        Raises:
            UsageError: the schema is contradictory or too complex, uses what is not supported,
                or asks for characters that the vocabulary does not have.
        """
        grammar = self._grammar(schema)
        with self._lock:
            matcher = self._kept.get(grammar)
            if matcher is not None:
                self._kept.move_to_end(grammar)
        if matcher is None:
            matcher = self._compiled(grammar, schema)
            with self._lock:
                self._kept[grammar] = matcher
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        return matcher.deep_copy()

    def _grammar(self, schema: dict[str, Any]) -> str:
        guided = {**schema, "x-guidance": _LAYOUT}
        # Some vocabularies leave out a space at the start of a text, but only in showing it.
        lead = "/ ?/ " if self._leads else ""
        return f"{_HEAD}\nstart: {lead}json\njson: %json {json.dumps(guided)}"

    def _compiled(self, grammar: str, schema: dict[str, Any]) -> Any:
        self._require_writable(literals(schema))
        if schema != ANY_OBJECT:
            _try_in_child(self._llguidance, grammar)
        limits = self._llguidance.LLParserLimits(**LIMITS)
        matcher = self._llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        matcher.compute_bitmask()  # the first step may cost more with a larger vocabulary
        if matcher.is_error():
            raise _unusable(matcher.get_error())
        return matcher

    def _require_writable(self, texts: Iterable[str]) -> None:
        for text in texts:
            spelled = json.dumps(text, ensure_ascii=False)[1:-1]
            if not self._can_write(spelled):
                lacking = [c for c in spelled if not self._can_write(c)]
                raise UsageError(
                    f"this model's vocabulary cannot write {text!r:.60} of the schema"
                    + (f": it has no token for {lacking[0]!r}" if lacking else "")
                    + "; use other words"
                )

    def _can_write(self, text: str) -> bool:
        """Whether some tokens, joined, are this text."""
        data = text.encode()
        reached = bytearray(len(data) + 1)
        reached[0] = 1
        for start in range(len(data)):
            if reached[start]:
                for end in range(start + 1, min(start + self._longest, len(data)) + 1):
                    if not reached[end] and data[start:end] in self._pieces:
                        reached[end] = 1
        return bool(reached[-1])


class _Entries:
    """A vocabulary as llguidance asks for one; control tokens and what is not fixed have no bytes.

    Tokens without bytes are in no mask.
    """

    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, table: list[bytes | None], control_ids: frozenset[int], end_id: int) -> None:
        self.eos_token_id = end_id
        self.tokens = [b"" if i in control_ids else piece or b"" for i, piece in enumerate(table)]

    def __call__(self, text: bytes) -> list[int]:
        """Nothing: text that is forced is chosen token by token, in whatever pieces."""
        return []


_all_grammars: weakref.WeakKeyDictionary[Tokenizer, Grammars] = weakref.WeakKeyDictionary()
_all_lock = threading.Lock()


def grammars_of(tokenizer: Tokenizer) -> Grammars:
    """The grammars of a tokenizer, which are made once and live as long as it does.

    Raises:
        UsageError: see ``Grammars``.
    """
    with _all_lock:
        grammars = _all_grammars.get(tokenizer)
        if grammars is None:
            grammars = _all_grammars[tokenizer] = Grammars(tokenizer)
        return grammars


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise UsageError(
            'structured output needs llguidance; install it with: pip install "martlet[structured]"'
        ) from None
    return llguidance


def _drops_spaces(tokenizer: Tokenizer, table: list[bytes | None]) -> bool:
    """Whether the space that a token begins with is left out where a text begins."""
    for token_id, piece in enumerate(table):
        if piece and piece.startswith(b" "):
            return tokenizer.start_decoding()(token_id) != piece
    return False


def _try_in_child(llguidance: ModuleType, grammar: str) -> None:
    packages = Path(str(llguidance.__file__)).parent.parent
    try:
        done = subprocess.run(
            # -I: no environment variable and no current folder decides what it imports.
            [sys.executable, "-I", str(_CHILD), str(packages)],
            input=grammar.encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unusable(f"making a grammar of it took more than {_TIMEOUT_SECONDS:g} s") from None
    if done.returncode == -signal.SIGXCPU:
        raise _unusable(f"making a grammar of it took more than {CPU_SECONDS} s")
    try:
        error = str(json.loads(done.stdout)["error"])
    except (ValueError, KeyError, TypeError):
        error = f"making a grammar of it took too much memory (status {done.returncode})"
    if error:
        raise _unusable(error)


def _unusable(reason: str) -> UsageError:
    text = " ".join(_PLACE.sub("", reason).split())
    if text.startswith("NoExtension"):
        text = "no text fits it"
    return UsageError(f"the JSON schema cannot be followed: {text:.200}; simplify it")
