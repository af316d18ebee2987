"""``martlet.adapt``: from a compressed folder and its float model to a better compressed folder."""

import json

import pytest

import martlet
from martlet.errors import CapacityError, UsageError

OPTIONS = {
    "iterations": 6,
    "block_iterations": 6,
    "batch_size": 2,
    "rows_at_once": 2,
    "samples": 12,
    "sample_tokens": 20,
    "top_k": 16,
}
TEXT = "天空是蔚蓝色，窗外有千纸鹤。话说天下大势，分久必合，合久必分。且听下回分解。\n" * 20


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "train.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["cpm1", "cpm2"])
def adapted(request, make_model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    floats = make_model(request.param)
    compressed = folder / "int4"
    martlet.quantize(floats, compressed, method="nearest", format="int4-g32", device="cpu")
    heard = []
    report = martlet.adapt(
        compressed,
        folder / "adapted",
        teacher=floats,
        data=text,
        options=martlet.AdaptationOptions(**OPTIONS),
        device="cpu",
        report=folder / "report.json",
        progress=lambda *values: heard.append(values),
    )
    return folder, floats, report, heard


def test_the_adapted_model_is_nearer_to_the_float_one_and_of_the_same_size(adapted):
    folder, _, report, heard = adapted
    assert report.loss_end < report.loss_start
    assert heard[-1][0] == heard[-1][1]
    sizes = {
        name: sum(file.stat().st_size for file in (folder / name).glob("*.safetensors"))
        for name in ("int4", "adapted")
    }
    assert sizes["adapted"] == sizes["int4"]
    assert sorted(path.name for path in folder.iterdir()) == ["adapted", "int4", "report.json"]


def test_the_folder_loads_and_says_how_it_came_to_be(adapted):
    from martlet.checkpoint.store import open_store

    folder, _, report, _ = adapted
    store = open_store(folder / "adapted")
    store.verify()
    assert store.quantize == "int4"
    facts = store.manifest.compression
    assert facts["method"] == "nearest"
    assert facts["adaptation"]["kept"] == report.kept
    assert facts["adaptation"]["loss_after"] == report.loss_end
    model = martlet.load(folder / "adapted", device="cpu")
    assert model.tokenizer.encode("天空")


def test_the_report_has_the_loss_curve(adapted):
    folder, _, report, _ = adapted
    read = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(report.to_json()))
    assert [look["iteration"] for look in read["looks"]] == list(range(7))
    assert {block["name"] for block in read["blocks"]} >= {"decoder.0", "decoder.1"}
    assert read["options"]["iterations"] == 6


def test_a_float_model_is_rounded_first(make_model, text, tmp_path):
    floats = make_model("cpm1")
    options = martlet.AdaptationOptions(**{**OPTIONS, "block_iterations": 0})
    report = martlet.adapt(
        floats,
        tmp_path / "adapted",
        data=text,
        format="int8",
        options=options,
        device="cpu",
    )
    from martlet.checkpoint.store import open_store

    assert open_store(tmp_path / "adapted").quantize == "int8"
    assert report.blocks == ()
    assert [path.name for path in tmp_path.iterdir()] == ["adapted"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "nothing to adapt; give --format"),
        ({"teacher": "cpm2"}, "must be the float model that the other was made of"),
        ({"data": "missing.txt"}, "the training text .* cannot be read"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"report": "nowhere/report.json"}, "its folder does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(change, message, make_model, text, tmp_path):
    arguments = {"data": text, "format": "int4-g32", "device": "cpu", **change}
    if "teacher" in change:
        arguments["teacher"] = make_model(change["teacher"])
    with pytest.raises(UsageError, match=message):
        martlet.adapt(make_model("cpm1"), tmp_path / "adapted", **arguments)
    assert not (tmp_path / "adapted").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iterations": -1}, "iterations is -1; it must be from 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"held_out": 0}, "held_out is 0"),
        ({"seed": "one"}, "seed is 'one'"),
    ],
)
def test_options_out_of_range_are_named(values, message):
    with pytest.raises(UsageError, match=message):
        martlet.AdaptationOptions(**values)


def test_memory_that_does_not_suffice_is_found_before_the_work(adapted, text, tmp_path):
    folder, floats, _, _ = adapted
    with pytest.raises(CapacityError, match="of main memory more than may be used"):
        martlet.adapt(
            folder / "int4",
            tmp_path / "out",
            teacher=floats,
            data=text,
            options=martlet.AdaptationOptions(**OPTIONS),
            device="cpu",
            ram="100MiB",  # the process alone holds more
        )
    assert not (tmp_path / "out").exists()
