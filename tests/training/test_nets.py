"""Training and inference agree: a trainable net, saved, converted and loaded, gives its logits."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import martlet
from martlet.engine.request import Context
from nets import GPT2, T5
from prepare import TOKENIZERS, ZOO
from shapes import CONFIGS, GPT2Config, T5Config

GPT2_TINY = GPT2Config(vocab_size=30000, n_embd=48, n_layer=3, n_head=3, n_positions=64)
T5_TINY = {"d_model": 40, "d_kv": 16, "d_ff": 56, "num_heads": 3}
CPM2_TINY = T5Config(vocab_size=26240, num_layers=2, num_decoder_layers=3, **T5_TINY)
EVA_TINY = T5Config(
    vocab_size=30000, num_layers=3, num_decoder_layers=2, model_type="eva", **T5_TINY
)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[GPT2 | T5, str], martlet.Model]:
    """Takes a net the way a trained one goes: saved, converted, loaded."""

    def save_convert_load(net: GPT2 | T5, model: str) -> martlet.Model:
        source, target = tmp_path / "saved", tmp_path / model
        source.mkdir()
        config, tensors = net.to_huggingface()
        (source / "config.json").write_text(json.dumps(config))
        save_file(
            {k: v.detach().contiguous() for k, v in tensors.items()}, source / "model.safetensors"
        )
        martlet.convert(source, target, quantize="none", tokenizer=vocabulary_of(model))
        return martlet.load(target)

    return save_convert_load


def vocabulary_of(model: str) -> Path:
    return ZOO / model / TOKENIZERS[model][1]


def randomize(net: GPT2 | T5) -> None:
    """Weights of such sizes that logits are far from flat and every tensor matters."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in net.named_parameters():
            value = torch.randn(p.shape, generator=random)
            is_scale = p.dim() == 1 and name.endswith("weight")
            is_linear = p.dim() == 2 and name.startswith(("h.", "encoder.", "decoder."))
            if is_scale:
                p.copy_(1 + 0.1 * value)
            else:
                p.copy_(value * (p.shape[1] ** -0.5 if is_linear else 0.3))
    net.eval()


def tokens(count: int, vocab_size: int, seed: int) -> list[int]:
    return torch.randint(
        vocab_size, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


def test_the_writer_gives_the_same_logits_trained_and_loaded(load) -> None:
    net = GPT2(GPT2_TINY)
    randomize(net)
    ids = tokens(37, 30000, seed=1)
    with torch.no_grad():
        expected = net(torch.tensor([ids]))[0]
    found = load(net, "cpm1-mini").logits(ids)
    assert expected.std() > 1  # flat logits would let any mistake pass
    # float32 in two orders of summation, sums of at most 192 terms, logits of the order of 5.
    assert torch.allclose(found, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("config", "name"), [(CPM2_TINY, "cpm2-mini"), (EVA_TINY, "eva-mini")], ids=["cpm2", "eva"]
)
def test_the_others_give_the_same_logits_trained_and_loaded(config, name, load) -> None:
    net = T5(config)
    randomize(net)
    # Longer than the exact buckets and, in the encoder, than the largest distance of 128.
    source = tokens(150, config.vocab_size, seed=1)
    target = tokens(41, config.vocab_size, seed=2)
    padding = 23
    mask = torch.tensor([[True] * len(source) + [False] * padding])
    with torch.no_grad():
        expected = net(torch.tensor([source + [0] * padding]), mask, torch.tensor([target]))[0]
    model = load(net, name)
    context = Context(decoder_ids=tuple(target), encoder_ids=tuple(source))
    sequence = model.generator.start(context, room_tokens=0, limit_tokens=None)
    found = sequence.advance(target, last_only=False)
    assert expected.std() > 1
    # As above, with scores that are not divided by the root of their size and so larger.
    assert torch.allclose(found, expected, rtol=0, atol=2e-4)


def test_the_configurations_are_those_of_the_bundled_models() -> None:
    for name in TOKENIZERS:
        bundled = json.loads((ZOO / name / "config.json").read_text())
        config = asdict(CONFIGS[name])
        assert {k: bundled[k] for k in config if k not in ("dropout", "model_type")} == {
            k: v for k, v in config.items() if k not in ("dropout", "model_type")
        }


def test_what_lies_ahead_of_a_writer_changes_nothing_before_it() -> None:
    net = GPT2(GPT2_TINY)
    randomize(net)
    ids = tokens(20, 30000, seed=1)
    with torch.no_grad():
        one, other = (net(torch.tensor([[*ids[:12], *tail]])) for tail in (ids[12:], ids[:8]))
    assert torch.equal(one[:, :12], other[:, :12])
    assert not torch.equal(one[:, 12:], other[:, 12:])


def test_dropout_is_at_work_only_while_training() -> None:
    for net, inputs in (
        (GPT2(GPT2_TINY), (torch.tensor([[5, 6, 7]]),)),
        (
            T5(CPM2_TINY),
            (torch.tensor([[5, 6]]), torch.tensor([[True, True]]), torch.tensor([[1, 2]])),
        ),
    ):
        with torch.no_grad():
            assert not torch.equal(net.train()(*inputs), net(*inputs))
            assert torch.equal(net.eval()(*inputs), net(*inputs))
