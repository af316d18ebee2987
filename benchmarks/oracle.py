"""Every family and variant beside transformers, on tiny random models: how far their logits differ.

    python benchmarks/oracle.py [FAMILY ...]

Writes benchmarks/results/oracle.json: for each variant and route the largest difference of a logit
over the largest logit, float32 on both sides. Of the first variant of each family also what
bfloat16 costs, here and there, and by the route "int8" what rounding our weights does. The tests
hold the same variants and routes to a limit.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

# Instead of this folder, whose tokenizers.py would hide the package that transformers needs.
sys.path[0] = str(Path(__file__).parents[1] / "tests" / "models")

import torch  # noqa: E402  (and what follows: found by the line above)
import transformers  # noqa: E402
from oracle_reference import make_reference  # noqa: E402
from oracle_routes import ROUTES, bfloat16, long, open_converted, steps  # noqa: E402
from oracle_variants import FAMILIES, VARIANTS, Variant, variants_of  # noqa: E402

import martlet  # noqa: E402
from martlet.bench.record import checkout_commit  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "oracle.json"


def errors_of(variant: Variant, folder: Path) -> Iterator[tuple[str, float]]:
    """Route and error, the float routes first; ``folder`` is empty."""
    reference = make_reference(variant, folder / "source")
    model = open_converted(folder / "source", folder / "converted")
    for name, route in ROUTES.items():
        yield name, route(model, reference)
    if variant.long_tokens is not None:
        yield "long", partial(long, num_tokens=variant.long_tokens)(model, reference)
    if variant is not variants_of(variant.family)[0]:
        return
    yield from zip(
        ("bfloat16", "bfloat16 of transformers"), bfloat16(model, reference), strict=True
    )
    divisible = FAMILIES[variant.family].divisible
    if divisible:
        wide = make_reference(variant, folder / "wide", **divisible)
        yield "int8", steps(open_converted(folder / "wide", folder / "int8", "int8"), wide)


def rows_of(variant: Variant, commit: str | None) -> Iterator[dict[str, Any]]:
    """The rows of one variant."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for route, error in errors_of(variant, Path(folder)):
            yield {
                "family": variant.family,
                "variant": variant.words,
                "route": route,
                "error": error,
                "device": "cpu",
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "commit": commit,
                "command": shlex.join(["python", *sys.argv]),
            }


def main() -> None:
    """Measure all variants, or those of some families in place of their old rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", choices=[*FAMILIES, []])
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    chosen = set(args.family or FAMILIES)
    old = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else []
    rows = [row for row in old if row["family"] not in chosen]
    commit = checkout_commit(Path(martlet.__file__).parent)
    for variant in VARIANTS:
        if variant.family in chosen:
            rows += rows_of(variant, commit)
            print(f"{variant.family}: {variant.words}", flush=True)
    rows.sort(key=lambda row: row["family"])
    args.output.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
