import pytest
import torch

from martlet.compression.compress_block import Method
from martlet.compression.compressor import Compressor, Placement
from martlet.compression.recipe import Recipe
from martlet.compression.work_folder import WorkFolder, work_path
from martlet.errors import UsageError

CPU = Placement(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def blocks(tiny_model):
    model = tiny_model("gpt2")
    recipe = Recipe.parse("int4-g32-asym", embedding="int8", rules=["*.mlp.c_fc.weight=none"])
    compressor = Compressor(model.architecture, model, recipe, Method("nearest"), [], CPU)
    return list(compressor.blocks())


def _equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    same = one.format == other.format and torch.equal(one.data, other.data)
    return same and torch.equal(one.dequantize(), other.dequantize())


def test_a_block_comes_back_as_it_was(blocks, tmp_path):
    with WorkFolder(tmp_path / "out", "gpt2", {"seed": 1}) as work:
        for block in blocks:
            work.save(block)
        assert not work.has_resumed
    with WorkFolder(tmp_path / "out", "gpt2", {"seed": 1}) as work:
        assert work.has_resumed
        for block in blocks:
            again = work.load(block.spec)
            assert again.layers == block.layers
            assert again.seconds == block.seconds
            assert again.planned == block.planned
            assert all(_equal(block.weights[name], w) for name, w in again.weights.items())
            assert list(again.weights) == [tensor.name for tensor in block.spec.tensors]
        work.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_work_of_other_options_is_dropped(blocks, tmp_path):
    with WorkFolder(tmp_path / "out", "gpt2", {"seed": 1}) as work:
        work.save(blocks[0])
    with WorkFolder(tmp_path / "out", "gpt2", {"seed": 2}) as work:
        assert work.has_discarded
        assert not work.has_resumed
        assert work.load(blocks[0].spec) is None


def test_a_damaged_block_counts_as_missing(blocks, tmp_path):
    with WorkFolder(tmp_path / "out", "gpt2", {}) as work:
        work.save(blocks[0])
        file = work.path / blocks[0].spec.name / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x55")
        assert work.load(blocks[0].spec) is None
        work.save(blocks[0])
        assert work.load(blocks[0].spec) is not None


def test_one_at_a_time(tmp_path):
    with (
        WorkFolder(tmp_path / "out", "gpt2", {}),
        pytest.raises(UsageError, match="another process"),
        WorkFolder(tmp_path / "out", "gpt2", {}),
    ):
        pass
    with WorkFolder(tmp_path / "out", "gpt2", {}):
        pass


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="cannot be written"),
        WorkFolder(tmp_path / "file" / "out", "gpt2", {}),
    ):
        pass
    assert work_path(tmp_path / "a").parent == tmp_path
