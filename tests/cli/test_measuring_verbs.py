import json
import math

import pytest

import martlet as martlet_package
from martlet.bench.shapes import SHAPES

TEXT = "却说那老汉推开门，只见一个人站在那里。" * 12


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_perplexity_json_is_the_score_of_the_api(martlet, tiny_cpm1, text_file):
    done = martlet("perplexity", tiny_cpm1, text_file, "--json")
    shown = json.loads(done.stdout)
    score = martlet_package.load(tiny_cpm1).score_text(TEXT)
    assert done.code == 0
    assert shown["bits_per_character"] == score.bits_per_character
    assert shown["perplexity"] == score.perplexity
    assert (shown["tokens"], shown["characters"]) == (score.num_tokens, score.num_characters)
    assert shown["seconds"] > 0


def test_perplexity_agrees_with_the_raw_logits_of_the_model(martlet, tiny_cpm1, tmp_path):
    # One window holds the text, so the sum over its rows is the whole cost.
    text = TEXT[:38]
    (tmp_path / "short.txt").write_text(text, encoding="utf-8")
    shown = json.loads(martlet("perplexity", tiny_cpm1, tmp_path / "short.txt", "--json").stdout)
    model = martlet_package.load(tiny_cpm1)
    ids = model.tokenizer.encode(text)
    rows = model.logits(ids).double().log_softmax(dim=1)
    bits = -sum(float(rows[i, ids[i + 1]]) for i in range(len(ids) - 1)) / math.log(2)
    # float32 logits of two passes of different length
    assert math.isclose(shown["bits_per_character"] * shown["characters"], bits, rel_tol=1e-5)


def test_perplexity_works_for_encoder_decoder_models(martlet, tiny_cpm2, tiny_eva, text_file):
    for folder in (tiny_cpm2, tiny_eva):
        shown = json.loads(martlet("perplexity", folder, text_file, "--json").stdout)
        # Random weights know nothing: about as bad as a guess among all tokens, or worse.
        assert shown["perplexity"] > 1000
        assert 0 < shown["characters"] < len(TEXT)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xb0\xa1", "not UTF-8 text: byte 0xb0 at offset 0"),
        (None, "cannot be read"),
    ],
)
def test_perplexity_refuses_what_is_no_text_before_it_loads_a_model(
    martlet, tmp_path, raw, message
):
    path = tmp_path / "file"
    if raw is not None:
        path.write_bytes(raw)
    done = martlet("perplexity", "no-such-model", path)
    assert done.code == 2
    assert message in done.stderr


def test_perplexity_of_several_formats_is_a_row_for_each(martlet, tiny_cpm1, text_file):
    done = martlet(
        "perplexity", tiny_cpm1, text_file, "--quantize", "none,int8,int4-g32", "--device", "cpu",
        "--json",
    )  # fmt: skip
    rows = json.loads(done.stdout)
    assert [row["format"] for row in rows] == ["float32", "int8", "int4-g32"]
    exact, eight, four = rows
    assert (exact["perplexity_change"], exact["kl"], exact["top1_agreement"]) == (0, 0, 1)
    assert 0 < eight["kl"] < four["kl"]
    for row in rows:
        change = row["perplexity"] / exact["perplexity"] - 1
        assert math.isclose(row["perplexity_change"], change, abs_tol=1e-12)
        assert row["compared_tokens"] == row["tokens"] == exact["tokens"]
    alone = json.loads(martlet("perplexity", tiny_cpm1, text_file, "--json").stdout)
    assert alone.keys() == exact.keys()
    assert alone["perplexity"] == exact["perplexity"]


def test_perplexity_against_a_model_shows_a_table_of_80_columns(
    martlet, tiny_cpm1, tiny_cpm2, text_file, tmp_path
):
    long_name = tmp_path / ("a-model-with-a-very-long-name" * 2)
    long_name.symlink_to(tiny_cpm1)
    done = martlet(
        "perplexity", long_name, tiny_cpm2, text_file, "--quantize", "int4-g128-asym",
        "--against", tiny_cpm1, "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    head, exact, coarse, other = done.stdout.splitlines()
    assert " ".join(head.split()) == "model format bits b/char perplexity change KL top-1"
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert exact.split()[1] == "float32"
    assert exact.split()[-3:] == ["+0.00%", "0.00000", "100.0%"]
    assert coarse.startswith("a-model-")
    assert coarse.split()[1] == "int4-g128-asym"
    assert other.split()[-3:] == ["-", "-", "-"]


def test_perplexity_names_a_format_that_there_is_not(martlet, tiny_cpm1, text_file):
    done = martlet("perplexity", tiny_cpm1, text_file, "--quantize", "none,int5")
    assert done.code == 2
    assert "'int5'" in done.stderr


def test_bench_json_is_a_list_of_rows_and_output_is_the_same_file(martlet, tiny_cpm2, tmp_path):
    out = tmp_path / "rows.json"
    done = martlet(
        "bench", tiny_cpm2, "--prompt-tokens", "8", "--max-tokens", "4", "--repetitions", "2",
        "--json", "--output", out,
    )  # fmt: skip
    assert done.code == 0
    assert json.loads(done.stdout) == json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout)[0]["decode_tokens_per_second"] > 0


def test_bench_refuses_more_than_the_context_holds(martlet, tiny_cpm1):
    done = martlet("bench", tiny_cpm1, "--prompt-tokens", "60", "--max-tokens", "5")
    assert done.code == 2
    assert "context of 64" in done.stderr


TINY_SHAPE = {
    "model_type": "t5",
    "vocab_size": 640,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}


@pytest.fixture
def tiny_shape(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY_SHAPE), encoding="utf-8")
    return path


def test_bench_measures_a_shape_without_any_weights(martlet, tiny_shape):
    done = martlet(
        "bench", "--shape", tiny_shape, "--device", "cpu", "--batch", "2", "--prompt-tokens", "8",
        "--max-tokens", "4", "--repetitions", "1", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["shape"], row["quantize"], row["batch"]) == (str(tiny_shape), "int8", 2)
    assert (row["prompt_tokens"], row["output_tokens"]) == (8, 4)
    assert row["protocol"] == "bminf"
    assert row["encode_seconds"] > 0


def test_bench_measures_with_an_int8_cache(martlet, tiny_shape, tiny_cpm1):
    lengths = ("--prompt-tokens", "8", "--max-tokens", "4", "--repetitions", "1")
    place = ("--device", "cpu", "--kv-cache", "int8")
    for model in (("--shape", tiny_shape), (tiny_cpm1,)):
        done = martlet("bench", *model, *place, *lengths, "--json")
        (row,) = json.loads(done.stdout)
        assert row["kv_cache"] == "int8"
        assert row["decode_tokens_per_second"] > 0
    done = martlet("bench", tiny_cpm1, *place, *lengths)
    assert "KV cache int8" in done.stdout


def test_bench_shows_a_shape_to_people(martlet, tiny_shape):
    done = martlet(
        "bench", "--shape", tiny_shape, "--device", "cpu", "--prompt-tokens", "8",
        "--max-tokens", "4", "--repetitions", "1",
    )  # fmt: skip
    assert f"{tiny_shape}, int8" in done.stdout
    assert "tokens/s" in done.stdout
    assert "GPU memory" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either MODEL or --shape"),
        (("some-model", "--shape", "cpm1"), "either MODEL or --shape"),
        (("some-model", "--batch", "2"), "go with --shape"),
        (("some-model", "--protocol", "bminf"), "go with --shape"),
        (("--shape", "cpm9"), "one of cpm2-11b, cpm1"),
    ],
)
def test_bench_says_what_to_give_instead(martlet, arguments, message):
    done = martlet("bench", *arguments)
    assert done.code == 2
    assert message in done.stderr


def test_bench_names_every_shape_that_there_is_in_its_help(martlet):
    shown = " ".join(martlet("bench", "--help").stdout.split())
    for name in SHAPES:
        assert name in shown
