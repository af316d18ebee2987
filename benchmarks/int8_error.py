"""What int8 does to a model: the float folder and its int8 twin side by side on the same text.

    python benchmarks/int8_error.py TEXT FLOAT_FOLDER INT8_FOLDER [FLOAT_FOLDER INT8_FOLDER ...]

Writes benchmarks/results/compression-int8.json. Whole texts are read in pieces of 128 tokens; an
encoder-decoder model reads one piece with its encoder and the next with its decoder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import martlet
from martlet.bench.record import checkout_commit
from martlet.engine.request import Context

RESULTS = Path(__file__).parent / "results" / "compression-int8.json"
PIECE_TOKENS = 128


def logits_of(model: martlet.Model, token_ids: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and the tokens that they should have foretold, piece by piece."""
    pieces = [list(token_ids[i : i + PIECE_TOKENS]) for i in range(0, len(token_ids), PIECE_TOKENS)]
    sentinels = model.tokenizer.special.sentinels
    for before, piece in itertools.pairwise(pieces):
        if not sentinels:
            yield model.logits([*before, *piece])[len(before) - 1 : -1], torch.tensor(piece)
            continue
        if model.family == "cpm2":
            start = (model.tokenizer.special.bos, sentinels[-1])
            context = Context(start, (*before, sentinels[-1]))
        else:
            start = (sentinels[0],)
            context = Context(start, (*before, model.tokenizer.special.sep, sentinels[0]))
        sequence = model.generator.start(context, len(piece), None)
        rows = sequence.advance([*start, *piece[:-1]], last_only=False)
        yield rows[len(start) - 1 :], torch.tensor(piece)


def compare(exact: martlet.Model, coarse: martlet.Model, text: str) -> dict[str, float]:
    """Figures over all pieces; the float model is the measure."""
    token_ids = exact.tokenizer.encode(text)
    num_tokens = agreed = 0
    nats = {"float": 0.0, "int8": 0.0}
    kl = difference = size = 0.0
    pairs = zip(logits_of(exact, token_ids), logits_of(coarse, token_ids), strict=True)
    for (a, tokens), (b, _) in pairs:
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        nats["float"] -= float(p.gather(1, tokens[:, None]).sum())
        nats["int8"] -= float(q.gather(1, tokens[:, None]).sum())
        kl += float((p.exp() * (p - q)).sum())
        agreed += int((a.argmax(-1) == b.argmax(-1)).sum())
        difference += float((b - a).double().square().sum())
        size += float(a.double().square().sum())
        num_tokens += len(tokens)
    return {
        "tokens": num_tokens,
        "perplexity_float": float(torch.tensor(nats["float"] / num_tokens).exp()),
        "perplexity": float(torch.tensor(nats["int8"] / num_tokens).exp()),
        "perplexity_change": float(
            torch.tensor((nats["int8"] - nats["float"]) / num_tokens).expm1()
        ),
        "kl": kl / num_tokens,
        "top1_agreement": agreed / num_tokens,
        "relative_logit_error": (difference / size) ** 0.5,
    }


def main() -> None:
    """Compare each pair and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    rows = []
    for exact, coarse in zip(args.folders[::2], args.folders[1::2], strict=True):
        pair = [martlet.load(folder, device="cpu") for folder in (exact, coarse)]
        form = {"model": coarse.name, "format": "int8", "method": "absmax", "group_size": None}
        row = {**form, **compare(pair[0], pair[1], text), "device": "cpu"}
        commit = checkout_commit(Path(martlet.__file__).parent)
        row |= {"torch": torch.__version__, "commit": commit}
        rows.append({**row, "command": " ".join(["python", *sys.argv])})
        print(json.dumps(rows[-1], ensure_ascii=False))
    RESULTS.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
