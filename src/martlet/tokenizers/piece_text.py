"""What the pieces of a Hugging Face or SentencePiece vocabulary add to a text, as bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ALL_LEADING", "DecodingRules", "UnsupportedDecoderError", "decoding_rules"]

_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")
ALL_LEADING = 1 << 30
"""A number of spaces to strip that stands for all of them."""


def _byte_alphabet() -> dict[str, int]:
    """Byte by the character that stands for it in byte-level vocabularies.

    Visible Latin-1 characters stand for themselves; the other bytes, in order, have the
    characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in visible}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class UnsupportedDecoderError(ValueError):
    """The tokenizer.json asks for a way of decoding that is not known here."""


@dataclass(frozen=True)
class DecodingRules:
    """How pieces become text.

    Attributes:
        byte_level: every character of a piece stands for a byte.
        byte_fallback: pieces like <0xE4> are one byte.
        replacements: (old, new) inside every piece, such as the word start by a space.
        strip: at most so many spaces are left out where the text begins.
        strip_first_token_only: not continued in the next token when the first is all spaces.
        joiner: goes between two pieces.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip: int = 0
    strip_first_token_only: bool = False
    joiner: bytes = b""

    def piece_bytes(self, piece: str) -> bytes:
        """The bytes of one ordinary piece, wherever it stands."""
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(match[1])
        if self.byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8", "replace")

    def start(self, table: list[bytes]) -> Callable[[int], bytes]:
        """A function for one text, from the next id to the bytes that it adds.

        Args:
            table: bytes by id; nothing for ids that are no text.
        """
        to_strip, at_start = self.strip, True

        def push(token_id: int) -> bytes:
            nonlocal to_strip, at_start
            text = table[token_id] if 0 <= token_id < len(table) else b""
            if not text:
                return b""
            gap = b"" if at_start else self.joiner
            at_start = False
            if to_strip:
                bare = text.lstrip(b" ")
                stripped = min(len(text) - len(bare), to_strip)
                to_strip = 0 if bare or self.strip_first_token_only else to_strip - stripped
                text = text[stripped:]
            return gap + text

        return push


def decoding_rules(decoder: dict[str, Any] | None) -> DecodingRules:
    """The rules in the "decoder" entry of a tokenizer.json.

    Raises:
        UnsupportedDecoderError: a part of it is not known here.
    """
    if decoder is None:
        return DecodingRules(joiner=b" ")
    rules: dict[str, Any] = {}
    replacements: list[tuple[str, str]] = []
    fused = False
    for step in _steps(decoder):
        match step:
            case {"type": "ByteLevel"}:
                rules["byte_level"] = True
            case {"type": "ByteFallback"}:
                rules["byte_fallback"] = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Metaspace", "replacement": str(mark)}:
                replacements.append((mark, " "))
                if _has_word_start(step):
                    rules |= {"strip": ALL_LEADING, "strip_first_token_only": True}
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": int(count), "stop": 0} if fused:
                rules["strip"] = count
            case _:
                raise UnsupportedDecoderError(str(step.get("type")))
    return DecodingRules(replacements=tuple(replacements), **rules)


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UnsupportedDecoderError(str(decoder.get("type")))
    return steps


def _has_word_start(metaspace: dict[str, Any]) -> bool:
    """Whether the vocabulary puts a word start before the first word; two spellings of it."""
    if "prepend_scheme" in metaspace:
        return bool(metaspace["prepend_scheme"] != "never")
    return bool(metaspace.get("add_prefix_space", True))
