"""Rope settings in older spellings, and those that go by the length, beside transformers' Llama."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_llama_variants import LLAMA_VARIANTS
from oracle_routes import error_of, open_converted, random_ids
from oracle_variant import Variant, longrope, rope

pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5
DYNAMIC = {**rope("dynamic", factor=4.0), "max_position_embeddings": 16}


@pytest.fixture(scope="module")
def make_reference() -> Any:
    from oracle_reference import make_reference

    return make_reference


@pytest.mark.parametrize(
    "variant",
    [each for each in LLAMA_VARIANTS if each.family == "llama" and "rope" in str(each.options)],
    ids=lambda variant: variant.id,
)
@pytest.mark.parametrize("type_name", ["type", "rope_type"])
def test_older_spellings_of_the_rope_settings_are_read(
    variant: Variant, type_name: str, make_reference: Any, tmp_path: Path
) -> None:
    reference = make_reference(variant, tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    config = json.loads(path.read_text())
    settings = config.pop("rope_parameters")
    config["rope_theta"] = settings.pop("rope_theta")
    settings[type_name] = settings.pop("rope_type")
    path.write_text(json.dumps({**config, "rope_scaling": settings}))
    model = open_converted(tmp_path / "source", tmp_path / "converted")
    token_ids = random_ids(1, 40)
    assert error_of(model.run("decoder", token_ids), reference(token_ids).logits) <= TOLERANCE


@pytest.mark.parametrize("options", [DYNAMIC, longrope(20, 6)], ids=["dynamic", "longrope"])
def test_the_room_of_the_cache_decides_about_rotations_that_go_by_the_length(
    options: dict[str, Any], make_reference: Any, tmp_path: Path
) -> None:
    """A text that may become long is turned as a long one from its first token on."""
    reference = make_reference(Variant("llama", "by length", options), tmp_path / "source")
    model = open_converted(tmp_path / "source", tmp_path / "converted")
    token_ids = random_ids(1, 40)
    theirs = reference(token_ids).logits
    assert error_of(model.run("decoder", token_ids), theirs) <= TOLERANCE
    cache = model.new_cache(1, 40)
    parts = [model.run("decoder", part, cache) for part in token_ids.split([7, 30, 1, 1, 1], 1)]
    assert error_of(torch.cat(parts, dim=1), theirs) <= TOLERANCE
    short = token_ids[:, :12]
    in_short_room = model.run("decoder", short, model.new_cache(1, 12))
    assert error_of(in_short_room, reference(short).logits) <= TOLERANCE
    assert error_of(in_short_room, model.run("decoder", short, model.new_cache(1, 40))) > 0.01
