"""The command martlet adapt."""

import json
from dataclasses import fields

import martlet
from martlet.cli.adapt import command
from martlet.cli.verbs import run_command

TEXT = "天空是蔚蓝色，窗外有千纸鹤。话说天下大势，分久必合，合久必分。\n" * 20


def test_a_float_model_is_rounded_and_adapted(make_model, tmp_path, capsys):
    text = tmp_path / "train.txt"
    text.write_text(TEXT, encoding="utf-8")
    line = (
        f"adapt {make_model('cpm1')} {tmp_path / 'out'} --data {text} --format int4-g64 "
        "--iterations 4 --block-iterations 4 --samples 8 --sample-tokens 16 --batch-size 2 "
        "--rows-at-once 2 --device cpu --json"
    )
    assert run_command(line.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["loss_end"] <= report["loss_start"]
    assert report["options"]["block_iterations"] == 4
    assert martlet.load(tmp_path / "out", device="cpu").write("天空", max_tokens=2) is not None


def test_a_mistake_is_one_line(make_model, tmp_path, capsys):
    text = tmp_path / "train.txt"
    text.write_text(TEXT, encoding="utf-8")
    line = f"adapt {make_model('cpm1')} {tmp_path / 'out'} --data {text} --device cpu"
    assert run_command(line.split()) == 2
    error = capsys.readouterr().err
    assert "--format" in error
    assert error.count("\n") == 1


def test_flags_have_the_defaults_of_the_options():
    flags = {parameter.name: parameter.default for parameter in command.params}
    for option in fields(martlet.AdaptationOptions):
        assert flags[option.name] == option.default, option.name
