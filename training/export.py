"""Turn trained models into the bundled ones, with the converter that everybody uses.

    python training/export.py OUTPUT_FOLDER [--models cpm1-mini ...]

Reads OUTPUT_FOLDER/MODEL (Hugging Face layout, float16) and cards/MODEL/generation_config.json, and
writes src/martlet/zoo/MODEL (int8). A model over the size limit is refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import martlet
from prepare import TOKENIZERS, ZOO

CARDS = Path(__file__).parent / "cards"
LIMIT_BYTES = 25_000_000


def export(model: str, source: Path) -> None:
    """Convert one model into the zoo, keeping its card and its sampling defaults."""
    target = ZOO / model
    vocabulary = target / TOKENIZERS[model][1]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / model
        shutil.copy(CARDS / model / "generation_config.json", source)
        martlet.convert(source, made, quantize="int8", tokenizer=vocabulary)
        size = sum(f.stat().st_size for f in made.glob("*.safetensors"))
        if size > LIMIT_BYTES:
            raise SystemExit(f"{model}: weights are {size:,} bytes, the limit is {LIMIT_BYTES:,}")
        shutil.rmtree(target)
        made.rename(target)
    print(json.dumps({"model": model, "weight_bytes": size}))


def main() -> None:
    """Export the models named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="*", default=list(TOKENIZERS))
    args = parser.parse_args()
    for model in args.models:
        export(model, args.output / model)


if __name__ == "__main__":
    main()
