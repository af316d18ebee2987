"""Every family straight from a folder as transformers saves it, through the public API."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import martlet
from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from oracle_routes import VOCAB_SIZE, error_of, random_ids
from oracle_variants import FAMILIES, variants_of

pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from oracle_reference import make_reference

    def make(family: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(family) / "model"
        reference = make_reference(variants_of(family)[0], folder)
        vocabulary = {f"<{number}>": number for number in range(VOCAB_SIZE)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(folder / "tokenizer.json"))
        return reference, folder

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_the_hub_computes_and_writes_as_transformers_does(
    family: str, make_folder: Any
) -> None:
    reference, folder = make_folder(family)
    model = martlet.load(folder, device="cpu", quantize="none")
    token_ids = random_ids(1, 12)
    with torch.inference_mode():
        theirs = reference(token_ids).logits[0]
        assert error_of(model.logits(token_ids[0].tolist()), theirs) < 1e-5
        written = token_ids
        for _ in range(6):
            chosen = reference(written).logits[:, -1:].argmax(-1)
            written = torch.cat([written, chosen], dim=1)
    prompt = " ".join(f"<{number}>" for number in token_ids[0].tolist())
    answer = model.write(prompt, max_tokens=6, temperature=0)
    assert answer == " ".join(f"<{number}>" for number in written[0, 12:].tolist())
