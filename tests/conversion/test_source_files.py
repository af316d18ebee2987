"""What the engine is told of a checkpoint is what it then gets."""

import pytest
import torch

from martlet.conversion.huggingface import HuggingFaceSource
from martlet.conversion.source_files import SourceFiles


@pytest.fixture(scope="module")
def files(make_hub_folder):
    folder = make_hub_folder(dtype=torch.float16)
    return SourceFiles(folder, HuggingFaceSource(folder))


def test_every_tensor_comes_in_the_shape_and_type_that_was_told(files):
    num_weights = 0
    for block in files.block_names:
        for planned in files.block_weights(block):
            name = planned.name.removeprefix(
                "" if block == "fixed" else f"transformer.h.{block[-1]}."
            )
            weight = files.weight(block, name)
            assert (tuple(weight.shape), weight.dtype) == (planned.shape, planned.form)
            num_weights += weight.nbytes
    assert num_weights == files.nbytes


def test_a_folder_tells_its_tokenizer_and_what_tells_it_from_others(files):
    kind, paths = files.tokenizer_files
    assert (kind, set(paths)) == ("huggingface", {"tokenizer.json"})
    assert files.load_tokenizer().vocab_size == 29
    assert files.chat_template() is None
    before = files.fingerprint()
    assert "model-00001-of-00002.safetensors" in before
    config = files.location / "config.json"
    config.write_text(config.read_text() + " ")
    assert files.fingerprint() != before


def test_weights_stay_valid_when_their_pages_are_given_back(files):
    table = files.weight("fixed", "transformer.wte.weight")
    before = table.clone()
    files.forget()
    assert torch.equal(table, before)
