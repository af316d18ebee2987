from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from martlet.checkpoint.store import Store, open_store
from martlet.conversion.convert import convert
from martlet.errors import ModelFileError, UsageError
from martlet.models.config import load_architecture


def stored(store: Store) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for block in store.manifest.blocks:
        for name, weight in store.block(block.name).items():
            assert isinstance(weight, Tensor)
            weights[block.prefix + name] = weight
    return weights


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_cpm1_shards_are_joined_and_can_be_cut_again(
    maker: Any, tmp_path: Path, count: int, legacy: bool
) -> None:
    weights = maker.gpt2()
    shards = maker.shards(weights, count)
    report = convert(maker.deepspeed(shards, legacy=legacy), tmp_path / "out", num_heads=4)
    assert (report.format_name, report.family, report.quantize) == ("megatron", "cpm1", "none")
    store = open_store(tmp_path / "out")
    same(stored(store), weights)
    assert (store.config["n_layer"], store.config["n_head"]) == (2, 4)
    assert (store.config["n_positions"], store.config["n_inner"]) == (12, 32)
    for again, shard in zip(maker.shards(stored(store), count), shards, strict=True):
        same(again, shard)
    store.verify()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_cpm2_shards_are_joined_and_can_be_cut_again(
    maker: Any, tmp_path: Path, count: int, legacy: bool
) -> None:
    weights = maker.t5()
    shards = maker.shards(weights, count)
    report = convert(maker.deepspeed(shards, legacy=legacy), tmp_path / "out")
    assert report.family == "cpm2"
    store = open_store(tmp_path / "out")
    same(stored(store), weights)
    expected = {
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "d_kv": 4,
        "d_ff": 24,
        "attn_scale": False,
    }
    assert expected.items() <= store.config.items()
    for again, shard in zip(maker.shards(stored(store), count), shards, strict=True):
        same(again, shard)


def test_all_ways_to_point_at_the_shards_lead_to_the_same_model(maker: Any, tmp_path: Path) -> None:
    weights = maker.t5()
    shards = maker.shards(weights, 2)
    root = maker.deepspeed(shards)
    merged = tmp_path / "merged" / "merge.pt"
    merged.parent.mkdir()
    torch.save(maker.shards(weights, 1)[0], merged)
    places = [root, root / "80000", maker.megatron(shards), merged.parent, merged]
    places.append(tmp_path / "megatron" / "iter_0000007")
    for number, place in enumerate(places):
        convert(place, tmp_path / f"out{number}")
        same(stored(open_store(tmp_path / f"out{number}")), weights)


def test_role_embeddings_make_it_eva_and_are_left_out(maker: Any, tmp_path: Path) -> None:
    shards = maker.shards(maker.t5(), 1)
    for prefix in ("", "encoder.", "decoder."):
        shards[0][prefix + "role_embeds.weight"] = torch.zeros(2, 8).half()
    root = maker.deepspeed(shards)
    report = convert(root, tmp_path / "out")
    store = open_store(tmp_path / "out")
    assert report.family == store.family == "eva"
    assert store.config["eos_token_id"] == 4
    # A width below 2048 exists in EVA 2.0 only.
    assert store.config["attn_scale"] is True
    (root / "eva1.0_model_config.json").write_text('{"attn_scale": false}')
    convert(root, tmp_path / "out2")
    assert open_store(tmp_path / "out2").config["attn_scale"] is False


def test_a_vocabulary_of_30000_makes_it_eva(maker: Any, tmp_path: Path) -> None:
    report = convert(maker.deepspeed(maker.shards(maker.t5(30000), 2)), tmp_path / "out")
    assert report.family == "eva"


def test_heads_of_cpm1_must_be_given_unless_it_has_the_published_width(
    maker: Any, tmp_path: Path
) -> None:
    root = maker.deepspeed(maker.shards(maker.gpt2(), 2))
    with pytest.raises(UsageError, match="--heads"):
        convert(root, tmp_path / "out")
    with pytest.raises(UsageError, match="do not divide"):
        convert(root, tmp_path / "out", num_heads=5)
    assert not (tmp_path / "out").exists()


def test_the_vocabulary_is_found_beside_the_shards_or_taken_from_where_one_says(
    maker: Any, tmp_path: Path
) -> None:
    root = maker.deepspeed(maker.shards(maker.t5(), 2))
    vocabulary = tmp_path / "words" / "vocab.txt"
    vocabulary.parent.mkdir()
    vocabulary.write_text("".join(f"{i}\n" for i in range(48)))
    convert(root, tmp_path / "bare")
    assert open_store(tmp_path / "bare").tokenizer is None
    for number, place in enumerate((vocabulary, vocabulary.parent)):
        convert(root, tmp_path / f"given{number}", tokenizer=place)
    vocabulary.rename(root / "vocab.txt")
    convert(root / "80000", tmp_path / "beside")
    for name in ("given0", "given1", "beside"):
        tokenizer = open_store(tmp_path / name).tokenizer
        assert tokenizer is not None
        assert (tokenizer.kind, tokenizer.files) == ("cpm2", ("vocab.txt",))
    with pytest.raises(UsageError, match=r"expected vocab\.txt"):
        convert(root, tmp_path / "none", tokenizer=tmp_path / "words")


def test_a_vocabulary_of_another_model_is_refused(maker: Any, tmp_path: Path) -> None:
    root = maker.deepspeed(maker.shards(maker.t5(), 2))
    (root / "vocab.txt").write_text("x\n" * 49)
    with pytest.raises(ModelFileError, match="49 entries"):
        convert(root, tmp_path / "out")


def test_shared_embeddings_that_differ_are_refused(maker: Any, tmp_path: Path) -> None:
    shards = maker.shards(maker.t5(), 2)
    shards[1]["decoder.word_embeds.weight"][3, 3] += 1
    with pytest.raises(ModelFileError, match=r"decoder\.word_embeds\.weight differs"):
        convert(maker.deepspeed(shards), tmp_path / "out")


def test_a_missing_shard_is_named(maker: Any, tmp_path: Path) -> None:
    root = maker.deepspeed(maker.shards(maker.t5(), 4))
    shards = sorted((root / "80000").iterdir())
    shards[3].unlink()
    with pytest.raises(ModelFileError, match="one of 4 shards, 3 are there"):
        convert(root, tmp_path / "out")
    shards[1].unlink()
    with pytest.raises(ModelFileError, match="without a gap"):
        convert(root, tmp_path / "out")


def test_shards_of_different_checkpoints_are_refused(maker: Any, tmp_path: Path) -> None:
    shards = maker.shards(maker.t5(), 2)
    del shards[1]["lm_head.weight"]
    with pytest.raises(ModelFileError, match="different checkpoints"):
        convert(maker.deepspeed(shards), tmp_path / "out")
    shards = maker.shards(maker.t5(), 2)
    shards[1]["lm_head.weight"] = shards[1]["lm_head.weight"][:5].clone()
    with pytest.raises(ModelFileError, match=r"lm_head\.weight has shapes"):
        convert(maker.deepspeed(shards, name="ds2"), tmp_path / "out")


def test_int8_weights_are_within_half_a_step(maker: Any, tmp_path: Path) -> None:
    weights = maker.t5()
    report = convert(maker.deepspeed(maker.shards(weights, 2)), tmp_path / "o", quantize="int8")
    assert report.quantize == "int8"
    store = open_store(tmp_path / "o")
    specs = load_architecture(store.config).block_specs()
    for spec in specs:
        block = store.block(spec.name)
        assert list(block) == [tensor.name for tensor in spec.tensors]
        for tensor in spec.tensors:
            original = weights[spec.prefix + tensor.name].float()
            weight = block[tensor.name]
            if tensor.kind == "other":
                assert isinstance(weight, Tensor)
                assert torch.equal(weight, weights[spec.prefix + tensor.name])
                continue
            assert not isinstance(weight, Tensor)
            error = (weight.dequantize() - original).abs()
            # half a step, plus float32 rounding of scale and product
            assert bool((error <= weight.scale[:, None] * 0.5001).all())
