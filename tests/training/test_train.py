"""Whole trainings at a tiny size: prepare, train, save, convert, load."""

import json
import math
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch

import martlet
import objectives
import prepare
import train
from corpus import Chapter
from shapes import GPT2Config, T5Config

CONFIGS = {
    "cpm1-teacher": GPT2Config(30000, n_embd=32, n_layer=2, n_head=2, dropout=0.0),
    "cpm1-mini": GPT2Config(30000, n_embd=16, n_layer=2, n_head=2, dropout=0.0),
    "cpm2-mini": T5Config(26240, 16, 8, 32, 2, 2, 2, dropout=0.0),
    "eva-mini": T5Config(30000, 16, 8, 32, 2, 2, 2, dropout=0.0, model_type="eva"),
}
STORY = "张三道： 你来了么 李四道： 我来了。 王五笑道： 酒来 赵六道： 来了 \n众人饮酒，天色已晚。\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    chapters = [Chapter("书", str(i), STORY * 12) for i in range(3)]
    texts = [chapter.text for chapter in chapters]
    with ThreadPool(1) as pool:
        for model in prepare.TOKENIZERS:
            for part in ("train", "valid"):
                for form in ("found", "quoted"):
                    prepare.write_text(folder / f"{model}-{part}-{form}.npz", model, texts, pool)
        for part in ("train", "valid"):
            prepare.write_dialogues(folder / f"eva-mini-{part}-dialogues.npz", chapters, pool)
    return folder


@pytest.fixture
def run_training(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs train.py with arguments of its own; the report it wrote."""
    for module in (train, objectives):
        monkeypatch.setattr(module, "CONFIGS", CONFIGS)
    monkeypatch.setattr(objectives, "HELD_OUT_BATCH", 2)

    def run(model: str, *options: str) -> dict:
        words = ["train.py", model, str(prepared), str(tmp_path), "--seconds", "600"]
        words += ["--batch", "4", "--length", "32", "--workers", "0", *options]
        monkeypatch.setattr(sys, "argv", words)
        train.main()
        return json.loads((tmp_path / model / "training.json").read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", prepare.TOKENIZERS)
def test_a_trained_model_converts_and_loads(run_training, tmp_path: Path, model: str) -> None:
    report = run_training(model, "--steps", "3")
    assert report["steps"] == 3
    assert report["history"][-1]["step"] == 3
    assert all(math.isfinite(value) for value in report["history"][-1].values())
    vocabulary = prepare.ZOO / model / prepare.TOKENIZERS[model][1]
    martlet.convert(tmp_path / model, tmp_path / "store", quantize="int8", tokenizer=vocabulary)
    assert martlet.load(tmp_path / "store").family == model.removesuffix("-mini")


def test_a_writer_learns_a_text_that_repeats(run_training) -> None:
    report = run_training("cpm1-mini", "--steps", "60", "--lr", "0.05")
    # The text is the same 90 characters again and again; at the start it is log2 30 000 = 14.9.
    assert report["history"][-1]["valid_bits"] < 9


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_that_was_saved(run_training, tmp_path: Path) -> None:
    run_training("cpm1-teacher", "--steps", "2")
    report = run_training("cpm1-mini", "--steps", "2", "--teacher", str(tmp_path / "cpm1-teacher"))
    assert math.isfinite(report["history"][-1]["valid_bits"])


def test_what_the_teacher_expects_weighs_more_than_the_text() -> None:
    labels = torch.tensor([[0]])
    taught = torch.tensor([[[0.0, 20.0]]])  # the teacher is sure of 1, the text says 0
    agrees = objectives.distilled(torch.tensor([[[0.0, 2.0]]]), taught, labels)
    differs = objectives.distilled(torch.tensor([[[2.0, 0.0]]]), taught, labels)
    assert agrees < differs


def test_the_rate_rises_stays_and_falls_to_almost_nothing() -> None:
    clock = train.Clock(seconds=1e9, steps=10_000)
    assert clock.rate(0) == pytest.approx(1 / 300, rel=1e-3)
    assert clock.rate(3000) == 1.0
    assert clock.rate(7000) == pytest.approx(0.51, abs=0.01)
    assert clock.rate(10_000) == pytest.approx(0.02, abs=1e-3)


def test_muon_has_the_matrices_of_the_blocks_and_adam_the_rest() -> None:
    model = train.GPT2(CONFIGS["cpm1-mini"])
    muon, adam = train.optimizers(model, lr=0.01)
    (matrices,) = (group["params"] for group in muon.param_groups)
    decayed, plain = (group["params"] for group in adam.param_groups)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed} == {"wte.weight", "wpe.weight"}
    assert all(names[id(p)].startswith("h.") and p.dim() == 2 for p in matrices)
    assert all(p.dim() == 1 for p in plain)
    assert len(matrices) + len(decayed) + len(plain) == len(names)
