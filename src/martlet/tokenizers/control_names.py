"""Names of control tokens: text must not spell them, a chat template must.

In the library that cuts text into tokens, control tokens have hidden names, which begin with a
Unicode noncharacter that is taken out of all text before. So text alone never becomes one. What a
chat template writes goes two ways at once: its control tokens become hidden names, what it quotes
stays text. The two are told apart by marks that are put into what is quoted, before the template
sees it, in such places that no control token's name can be whole with a part of it inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["MARK", "TemplateNames", "TokenNames"]

MARK = "\ufdd0"
"""Begins hidden names, and marks what is quoted. Never part of real text; taken out of text."""

_END = "\ufdd1"  # ends hidden names, so that digits behind one do not belong to it
_REPLACEMENT = "\ufffd"


class TokenNames:
    """Names of tokens, and what they are called in the library; ``ids`` are ids by name."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {name: token_id for name, token_id in ids.items() if name}
        self.pattern = _one_of(self.ids)

    def hidden(self, name: str) -> str:
        """The name in the library; a name that is none of these is the same there."""
        return f"{MARK}{self.ids[name]}{_END}" if name in self.ids else name

    def hide_all(self, text: str) -> str:
        """The text with every name in it hidden; of two at a place, the longer."""
        return self.pattern.sub(lambda found: self.hidden(found[0]), text) if self.ids else text


class TemplateNames:
    """The names that one chat template may mean.

    Args:
        meant: tokens that the template alone may write: control tokens, and others that stand in
            its source.
        ordinary: tokens that are text like other text, whoever writes it.
    """

    def __init__(self, meant: TokenNames, ordinary: TokenNames) -> None:
        self._meant = meant
        self._ordinary = ordinary
        first = {name[0] for name in meant.ids}
        last = {name[-1] for name in meant.ids}
        self._marked = {
            edge: MARK * (edge in last) + edge + MARK * (edge in first) for edge in first | last
        }

    def quoted(self, text: str, keep: Iterable[str] = ()) -> str:
        """Text for a template to quote, marked so that no part of it can belong to a name.

        Every character with which a name may begin has a mark behind it, and every one with which
        a name may end a mark before it; also what a template cuts out of the text, and puts
        beside its own, is no name then.

        Args:
            text: the text.
            keep: words that the template shall find as they are, such as <think>.
        """
        text = text.replace(MARK, _REPLACEMENT)
        kept = dict.fromkeys(keep)
        edges = _one_of([*kept, *self._marked])
        marked = edges.sub(lambda found: self._marked.get(found[0], found[0]), text)
        bare = text.strip()
        if bare and any(bare in name[1:-1] for name in self._meant.ids):
            start = text.index(bare)  # nothing before it is marked unless white space is an edge
            marked = marked[:start] + MARK + marked[start:]
        return marked

    def spelled_out(self, text: str) -> str:
        """What a template wrote, the tokens that it means under hidden names, without marks."""
        pieces, done = [], 0
        for found in self._meant.pattern.finditer(text):
            # One character cannot be marked inside, but beside.
            if len(found[0]) == 1 and MARK in text[max(0, found.start() - 1) : found.end() + 1]:
                continue
            pieces += [self._plain(text[done : found.start()]), self._meant.hidden(found[0])]
            done = found.end()
        return "".join([*pieces, self._plain(text[done:])])

    def _plain(self, text: str) -> str:
        return self._ordinary.hide_all(text.replace(MARK, ""))


def _one_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of some words at the first place where there is one."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
