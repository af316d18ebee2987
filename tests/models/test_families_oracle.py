"""Every family and variant against transformers, taken through our converter, by every route."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from oracle_routes import ROUTES, bfloat16, long, open_converted, steps
from oracle_variants import FAMILIES, VARIANTS, Variant, variants_of

pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

# float32 on both sides, the order of the sums differs; angles of late positions differ in their
# last bits, which some frequencies show.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def make_reference() -> Any:
    from oracle_reference import make_reference

    return make_reference


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id)
def test_logits_equal_those_of_transformers_by_every_route(
    variant: Variant, make_reference: Any, tmp_path: Path
) -> None:
    reference = make_reference(variant, tmp_path / "source")
    model = open_converted(tmp_path / "source", tmp_path / "converted")
    routes = dict(ROUTES)
    if variant.long_tokens is not None:
        routes["long"] = partial(long, num_tokens=variant.long_tokens)
    errors = {name: route(model, reference) for name, route in routes.items()}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].divisible])
def test_int8_stays_near_the_float_model(family: str, make_reference: Any, tmp_path: Path) -> None:
    variant = variants_of(family)[0]
    reference = make_reference(variant, tmp_path / "source", **FAMILIES[family].divisible)
    model = open_converted(tmp_path / "source", tmp_path / "converted", "int8")
    # Rounding to int8 puts a noise of 0.7 % on every weight; it adds up over the layers.
    assert 1e-4 < steps(model, reference) < 0.06


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_costs_no_more_than_in_transformers(
    family: str, make_reference: Any, tmp_path: Path
) -> None:
    reference = make_reference(variants_of(family)[0], tmp_path / "source")
    model = open_converted(tmp_path / "source", tmp_path / "converted")
    ours, theirs = bfloat16(model, reference)
    assert 1e-3 < ours < 1.1 * theirs
