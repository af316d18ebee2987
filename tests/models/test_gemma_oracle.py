"""What of Gemma logits in float32 do not show: roundings, and the names in checkpoints that see."""

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_routes import Model, open_converted, random_ids
from oracle_variants import variants_of

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def make_reference() -> Any:
    from oracle_reference import make_reference

    return make_reference


def _in_bfloat16(model: Model) -> Model:
    blocks = {
        name: {key: weight.bfloat16() for key, weight in weights.items()}
        for name, weights in model.blocks.items()
    }
    return Model(model.architecture, blocks)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_embeddings_are_scaled_with_the_roundings_of_training(
    family: str, make_reference: Any, tmp_path: Path
) -> None:
    reference = make_reference(variants_of(family)[0], tmp_path / "source").bfloat16()
    model = _in_bfloat16(open_converted(tmp_path / "source", tmp_path / "converted"))
    token_ids = random_ids(2, 12)
    hidden, _ = model.architecture.embed(model.blocks["fixed"], "decoder", token_ids, None)
    assert torch.equal(hidden, reference.model.embed_tokens(token_ids))
    # The root of 48 is no bfloat16, so the exact one would show.
    exact = reference.model.embed_tokens.weight[token_ids].float() * 48**0.5
    assert not torch.equal(hidden, exact.bfloat16())


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model."])
def test_the_text_of_a_checkpoint_that_sees_is_found_under_any_of_its_names(
    prefix: str, make_reference: Any, tmp_path: Path
) -> None:
    make_reference(variants_of("gemma3")[0], tmp_path / "source")
    before = open_converted(tmp_path / "source", tmp_path / "before")
    path = tmp_path / "source" / "model.safetensors"
    tensors = safetensors.load_file(path)
    written = "language_model.model."
    assert any(name.startswith(written) for name in tensors)
    assert any(name.startswith("vision_tower.") for name in tensors)
    renamed = {name.replace(written, prefix, 1): tensor for name, tensor in tensors.items()}
    safetensors.save_file(renamed, path, metadata={"format": "pt"})
    after = open_converted(tmp_path / "source", tmp_path / "after")
    token_ids = random_ids(1, 9)
    assert torch.equal(before.run("decoder", token_ids), after.run("decoder", token_ids))
