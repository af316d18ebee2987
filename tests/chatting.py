"""A model that says what a test wants: each token leads to one other, whatever came before."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from martlet.tokenizers.huggingface import HuggingFaceTokenizer

from .tokenizers.made_templates import CHATML, QWEN3
from .tokenizers.made_tokenizers import byte_level, write_folder
from .tokenizers.made_tool_templates import HERMES

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINK = ["<think>", "</think>"]
REPLY = ["<think>", "h", "m", "</think>", "\n\n", "4", "2", "<|im_end|>"]
"""What the model says after a line break, one token each."""

_WIDTH = 256


def write_chatting_model(make_model, folder: Path, *, template=QWEN3, reply=REPLY, **options):
    """A Llama of one layer that does nothing, so that its head alone decides what follows.

    ``template`` may also be "hermes", for one that takes tools. ``options`` are ``generation`` and
    ``config`` of the model, ``special`` and ``visible`` tokens beside the usual ones, and settings
    of the tokenizer.
    """
    generation, config = options.pop("generation", {}), options.pop("config", {})
    template = HERMES if template == "hermes" else template
    special, visible = options.pop("special", []), options.pop("visible", [])
    settings = {"eos_token": "<|im_end|>", "chat_template": template, **options}
    visible = [*visible, *(THINK if template == QWEN3 else [])]
    write_folder(folder, byte_level([*IM, *special], visible), **settings)
    tokenizer = HuggingFaceTokenizer.from_json(folder / "tokenizer.json")
    chain = _ids(tokenizer, ["\n", *reply])
    assert len(set(chain)) == len(chain), "a token leads to one other"
    random = torch.Generator().manual_seed(5)
    embedding = torch.randn(tokenizer.vocab_size, _WIDTH, generator=random)
    head = torch.zeros_like(embedding)
    for before, after in itertools.pairwise(chain):
        head[after] += embedding[before]
    files = {path.name: path for path in folder.iterdir()}
    return make_model(
        "llama",
        config={
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": _WIDTH,
            "num_hidden_layers": 1,
            "max_position_embeddings": 256,
            **config,
        },
        generation={"temperature": 0.0, **generation},
        tokenizer=("huggingface", files),
        weights={"embed_tokens.weight": embedding, "lm_head.weight": head * 0.01},
    )


def _ids(tokenizer, words) -> list[int]:
    """The id of each word, a token of its own."""
    names = tokenizer.template_names([*words])
    ids = [tokenizer.encode_spelled(word, names) for word in words]
    assert all(len(one) == 1 for one in ids), list(zip(words, ids, strict=True))
    return [token_id for (token_id,) in ids]


__all__ = ["CHATML", "IM", "QWEN3", "REPLY", "THINK", "write_chatting_model"]
