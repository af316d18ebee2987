"""What an int8 cache does to logits, by position: the same model over the same tokens, with a cache
of floats and with one of int8.

    python benchmarks/kv_cache_error.py TEXT [--positions 4096] [--device cpu]

Writes benchmarks/results/kv-cache.json. The bundled models read TEXT as far as they go. Random
weights of three families, of small sizes but with heads as wide as those of large models, read
random tokens up to the last position. Random keys have no outlying channels, as trained ones may.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import martlet
from martlet.bench.opening import Setting, open_shape
from martlet.bench.passes import Workload
from martlet.bench.record import checkout_commit
from martlet.bench.shapes import Shape
from martlet.engine.passes import run_stack
from martlet.engine.request import Context
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture
from martlet.quantization.kv_form import KV_FORMS, KVForm

RESULTS = Path(__file__).parent / "results" / "kv-cache.json"
BUNDLED = ("cpm1-mini", "cpm2-mini", "eva-mini")
# Tokens that a bundled encoder-decoder model encodes, and that its decoder reads after that.
PIECE_TOKENS = 256
PASS_TOKENS = 256
ENCODER_TOKENS = 512
RANDOM_SHAPES = (
    Shape(
        "random-gpt2",
        "cpm1",
        {
            "model_type": "gpt2",
            "vocab_size": 4096,
            "n_positions": 4096,
            "n_embd": 512,
            "n_layer": 8,
            "n_head": 8,
        },
    ),
    Shape(
        "random-llama",
        "llama",
        {
            "model_type": "llama",
            "vocab_size": 4096,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    Shape(
        "random-t5",
        "t5",
        {
            "model_type": "t5",
            "vocab_size": 4096,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 1024,
            "num_heads": 8,
            "num_layers": 4,
            "num_decoder_layers": 8,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            # T5 has no scale, but its queries begin smaller by as much; these random ones do not.
            "attn_scale": True,
        },
    ),
)


@dataclass(frozen=True)
class Piece:
    """Logits at positions that follow each other, and the tokens that stood there, where known.

    Shapes:
        logits: (num_tokens, vocab_size)
        targets: (num_tokens,) int64
    """

    first_position: int
    logits: Tensor
    targets: Tensor | None = None


@dataclass
class Sums:
    """What is added up over the tokens of a bucket of positions; nats."""

    num_tokens: int = 0
    num_agreed: int = 0
    kl: float = 0.0
    difference: float = 0.0
    size: float = 0.0
    float_nats: float = 0.0
    int8_nats: float = 0.0

    def add(self, exact: Tensor, coarse: Tensor, targets: Tensor | None) -> None:
        """Count tokens by their logits with a cache of floats, and with one of int8."""
        exact, coarse = exact.double(), coarse.double()
        p, q = exact.log_softmax(-1), coarse.log_softmax(-1)
        self.num_tokens += len(exact)
        self.num_agreed += int((exact.argmax(-1) == coarse.argmax(-1)).sum())
        self.kl += float((p.exp() * (p - q)).sum())
        self.difference += float((coarse - exact).square().sum())
        self.size += float(exact.square().sum())
        if targets is not None:
            self.float_nats -= float(p.gather(1, targets[:, None]).sum())
            self.int8_nats -= float(q.gather(1, targets[:, None]).sum())

    def row(self, has_text: bool) -> dict[str, Any]:
        """The figures of a row; those of a text are None without one."""
        mean = self.int8_nats / self.num_tokens
        change = math.expm1(mean - self.float_nats / self.num_tokens)
        return {
            "num_tokens": self.num_tokens,
            "relative_logit_error": math.sqrt(self.difference / self.size),
            "kl": self.kl / self.num_tokens,
            "top1_agreement": self.num_agreed / self.num_tokens,
            "perplexity": math.exp(mean) if has_text else None,
            "perplexity_change": change if has_text else None,
        }


@dataclass
class Buckets:
    """Sums by position, 0-63, 64-127, 128-255 and so on by powers of two, and over all of them."""

    by_first: dict[int, Sums] = field(default_factory=dict)
    everything: Sums = field(default_factory=Sums)
    has_text: bool = False

    def add(self, exact: Piece, coarse: Piece) -> None:
        """Count two pieces of the same tokens."""
        self.has_text |= exact.targets is not None
        start, stop = exact.first_position, exact.first_position + len(exact.logits)
        first = 0
        while first < stop:
            end = max(64, 2 * first)
            own = slice(max(first, start) - start, min(end, stop) - start)
            if first < stop and end > start:
                targets = None if exact.targets is None else exact.targets[own]
                for sums in (self.by_first.setdefault(first, Sums()), self.everything):
                    sums.add(exact.logits[own], coarse.logits[own], targets)
            first = end

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each bucket, and one for all positions."""
        for first, sums in sorted(self.by_first.items()):
            last = max(64, 2 * first) - 1
            yield {"positions": f"{first}-{last}", **sums.row(self.has_text)}
        yield {"positions": "all", **self.everything.row(self.has_text)}


def compare(pieces_of: Callable[[KVForm], Iterator[Piece]]) -> Buckets:
    """The float cache and the int8 cache side by side, a piece at a time."""
    buckets = Buckets()
    exact, coarse = (pieces_of(form) for form in KV_FORMS)
    for one, other in zip(exact, coarse, strict=True):
        buckets.add(one, other)
    return buckets


def bundled_pieces(
    models: Mapping[KVForm, martlet.Model], text: str, form: KVForm
) -> Iterator[Piece]:
    """What a bundled model foretells of a text, window by window."""
    model = models[form]
    token_ids = model.tokenizer.encode(text)
    positions = model.generator.architecture.max_positions
    if positions is not None:
        for i in range(0, len(token_ids) - 1, positions):
            window = token_ids[i : i + positions + 1]
            yield Piece(0, model.logits(window[:positions])[: len(window) - 1], _ids(window[1:]))
        return
    pieces = [token_ids[i : i + PIECE_TOKENS] for i in range(0, len(token_ids), PIECE_TOKENS)]
    for before, piece in itertools.pairwise(pieces):
        context = _context(model, before)
        start = context.decoder_ids
        sequence = model.generator.start(context, len(piece), None)
        rows = sequence.advance([*start, *piece[:-1]], last_only=False)
        yield Piece(len(start), rows[len(start) - 1 :], _ids(piece))


def _ids(token_ids: Sequence[int]) -> Tensor:
    return torch.tensor(list(token_ids))


def _context(model: martlet.Model, before: Sequence[int]) -> Context:
    """``before`` as an encoder-decoder model was trained to read what it goes on from."""
    special = model.tokenizer.special
    if model.family == "cpm2":
        return Context((special.bos, special.sentinels[-1]), (*before, special.sentinels[-1]))
    first = special.sentinels[0]
    return Context((first,), (*before, special.sep, first))


@torch.inference_mode()
def random_pieces(
    architecture: Architecture, executor: Executor, num_positions: int, form: KVForm
) -> Iterator[Piece]:
    """What random weights make of random tokens, pass by pass."""
    device, generator = executor.device, torch.Generator().manual_seed(7)
    like = torch.empty(0, dtype=executor.dtype, device=device)
    has_encoder = architecture.has_encoder
    cache = architecture.new_cache(1, num_positions, like, ENCODER_TOKENS * has_encoder, form)
    sizes = (1, num_positions + ENCODER_TOKENS)
    token_ids = torch.randint(architecture.vocab_size, sizes, generator=generator).to(device)
    if has_encoder:
        hidden = run_stack(architecture, executor, "encode", token_ids[:, num_positions:])
        hidden = architecture.head(executor.fixed(), "encoder", hidden)
        cache.set_encoder_output(hidden, [ENCODER_TOKENS])
    for first in range(0, num_positions, PASS_TOKENS):
        rows = token_ids[:, first : min(first + PASS_TOKENS, num_positions)]
        hidden = run_stack(architecture, executor, "prefill", rows, cache)
        logits = architecture.head(executor.fixed(), "decoder", hidden)
        yield Piece(first, logits[0].float().cpu())


def main() -> None:
    """Compare all models and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    rows = []
    for name in BUNDLED:
        models = {form: martlet.load(name, device=args.device, kv_cache=form) for form in KV_FORMS}
        buckets = compare(lambda form, models=models: bundled_pieces(models, text, form))
        rows += _rows(name, buckets, args.device)
    setting = Setting(quantize="none", device=args.device)
    for shape in RANDOM_SHAPES:
        workload = Workload(ENCODER_TOKENS, args.positions - ENCODER_TOKENS + 1)
        opened = open_shape(shape, setting, workload)
        buckets = compare(lambda form, opened=opened: random_pieces(*opened, args.positions, form))
        rows += _rows(shape.name, buckets, args.device)
    args.output.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _rows(name: str, buckets: Buckets, device: str) -> list[dict[str, Any]]:
    rows = [
        {
            "model": name,
            "format": "kv-int8",
            "method": "absmax",
            **figures,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "commit": checkout_commit(Path(martlet.__file__).parent),
            "command": shlex.join(["python", *sys.argv]),
        }
        for figures in buckets.rows()
    ]
    print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
