"""Small tokenizers of the shapes that today's models have, trained here, as tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.trainers import BpeTrainer

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

CORPUS = [
    "天空是蔚蓝色，窗外有千纸鹤和云 🐦 飞",
    "You are a helpful assistant. What is 17 + 25? It is 42, isn't it?",
    "user system assistant think the answer Cutting Knowledge Date: December 2023",
    "def add(a, b):\n    return a + b\n\n\n<b>bold</b>  two  spaces",
] * 4

# Words, runs of at most three digits, punctuation: what Llama 3 and Qwen cut by, near enough.
_SPLIT = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
)

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(special, visible=(), *, has_split=True, normalizer=None) -> dict:
    """Llama 3's and Qwen's kind; ``special`` and ``visible`` are added behind its pieces."""
    library = Tokenizer(models.BPE(ignore_merges=has_split))
    library.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not has_split)
    library.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), "isolated"), level])
        if has_split
        else level
    )
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    library.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    library.add_tokens([AddedToken(name, special=False, normalized=False) for name in visible])
    return json.loads(library.to_str())


def byte_fallback(special, prefix="always", visible=()) -> dict:
    """Llama 2's kind: pieces with ▁ for spaces, bytes for what no piece spells.

    ``prefix`` says before what a space is put: "always" every stretch of text between control
    tokens, "first" the beginning alone, "never" nothing (Gemma).
    """
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = BpeTrainer(vocab_size=400, show_progress=False)
    library.train_from_iterator([f" {line}" for line in CORPUS], trainer)
    trained = json.loads(library.to_str())["model"]
    pieces = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    own = list(dict.fromkeys(["<unk>", "<s>", "</s>", *special, *visible, *BYTE_PIECES, *pieces]))
    library = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(own)},
            [tuple(pair) for pair in trained["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    if prefix == "first":
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif prefix == "always":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        library.normalizer = spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence(
        steps if prefix == "never" else [*steps, decoders.Strip(" ", 1, 0)]
    )
    controls = ["<unk>", "<s>", "</s>", *special]
    library.add_special_tokens([AddedToken(name, normalized=False) for name in controls])
    library.add_tokens([AddedToken(name, special=False, normalized=False) for name in visible])
    return json.loads(library.to_str())


def with_flags(state: dict, **flags: dict) -> dict:
    """The state with flags such as rstrip on added tokens, by name."""
    added = [token | flags.get(token["content"], {}) for token in state["added_tokens"]]
    return state | {"added_tokens": added}


def write_folder(folder: Path, state: dict, **config) -> Path:
    """A folder with this tokenizer.json and tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
