"""How byte-level vocabularies cut text into words, by the name that GGUF files have for it.

The expressions are those of the tokenizer.json of the models that the names stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SPLITS", "Split"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words_and_numbers(digits: str) -> str:
    """Words with the sign before them, numbers of so many digits, signs with the lines they end."""
    words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    return f"{_CONTRACTIONS}|{words}|{_END}"


def _cased_words(digits: str, ending: str) -> str:
    """Words cut where a small letter stands before a capital one."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{upper}*{lower}+{ending}|{before}{upper}+{lower}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}"


_THREE_DIGITS = _words_and_numbers(r"\p{N}{1,3}")
_ONE_DIGIT = _words_and_numbers(r"\p{N}")
_TEKKEN = _cased_words(r"\p{N}", "")
_GPT_4O = _cased_words(r"\p{N}{1,3}", f"{_CONTRACTIONS}?")
_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _END
)


@dataclass(frozen=True)
class Split:
    """One way of cutting.

    ``patterns`` cut one after the other; after them comes GPT-2's own expression where
    ``has_gpt2``. ``ignores_merges``: a word that is a token is that token, whatever the merges
    would make of it. ``is_composed``: text is brought to Unicode's form NFC first. ``adds_bos``: a
    file that does not say wants a start token before a text.
    """

    patterns: tuple[str, ...]
    has_gpt2: bool = False
    ignores_merges: bool = False
    is_composed: bool = False
    adds_bos: bool = False

    def steps(self, *, add_prefix_space: bool) -> list[dict[str, Any]]:
        """The steps of "pre_tokenizer" in a tokenizer.json."""
        cuts = [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
            for pattern in self.patterns
        ]
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": add_prefix_space,
            "trim_offsets": True,
            "use_regex": self.has_gpt2,
        }
        return [*cuts, byte_level]


_GPT2 = Split((), has_gpt2=True)
_DIGITS_AND_GPT2 = Split((r"\p{N}",), has_gpt2=True)
_LLAMA3 = Split((_THREE_DIGITS,), ignores_merges=True, adds_bos=True)
_DBRX = Split((_THREE_DIGITS,))
_QWEN2 = Split((_ONE_DIGIT,), is_composed=True)
_PLAIN_ONE_DIGIT = Split((_ONE_DIGIT,))

SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2", "jais", "gigachat"), _GPT2),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "minerva-7b"), _DIGITS_AND_GPT2
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), _LLAMA3
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _DBRX),
    "qwen2": _QWEN2,
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez"), _PLAIN_ONE_DIGIT),
    "tekken": Split((_TEKKEN,), ignores_merges=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split((_GPT_4O,))),
    "deepseek-coder": Split(
        (
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            r"\p{N}",
        )
    ),
    "deepseek-v3": Split((r"\p{N}{1,3}", _HAN, _DEEPSEEK_3)),
}
"""By ``tokenizer.ggml.pre``."""
