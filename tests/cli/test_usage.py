import pytest

from martlet.cli.verbs import VERBS, verbs


@pytest.mark.parametrize(
    ("flags", "got", "limit"),
    [
        (("--top-p", "1.5"), "1.5", "0<x<=1"),
        (("--top-p", "nan"), "nan", "0<x<=1"),
        (("--temperature", "-1"), "-1", "0<=x<=100"),
        (("--max-tokens", "0"), "0", "x>=1"),
        (("--max-tokens", "many"), "many", "integer"),
        (("--repetition-penalty", "0"), "0", "0.01<=x<=100"),
        (("--presence-penalty", "3"), "3", "-2<=x<=2"),
        (("--seed", "-1"), "-1", "0<=x"),
        (("--quantize", "int3"), "int3", "none, int8, int4"),
        (("--quantize", "int4-g16"), "int4-g16", "N 32, 64 or 128"),
        (("--device", "tpu"), "tpu", "'auto', 'cuda', 'cpu'"),
        (("--threads", "0"), "0", "x>=1"),
        (("--ram", "6XB"), "6XB", "6GiB"),
        (("--gpu-memory", "-3GiB"), "-3GiB", "6GiB"),
        (("--no-such-flag",), "--no-such-flag", "martlet write --help"),
    ],
)
def test_a_bad_flag_gives_2_and_one_line_with_flag_value_and_limit(martlet, flags, got, limit):
    done = martlet("write", "cpm1-mini", "却说", *flags)
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in (flags[0], got, limit):
        assert part in done.stderr


def test_the_flags_of_generation_have_the_limits_of_the_sampler(martlet, tiny_cpm1):
    # What the command line lets through, the sampler must accept: the ends of every range.
    for flags in (
        ("--temperature", "0", "--top-p", "1", "--min-p", "0", "--repetition-penalty", "0.01"),
        ("--temperature", "100", "--min-p", "1", "--repetition-penalty", "100", "--top-k", "0"),
        ("--presence-penalty", "-2", "--frequency-penalty", "2", "--seed", str(2**63 - 1)),
    ):
        assert martlet("write", tiny_cpm1, "却说", "--max-tokens", "2", *flags).code == 0


def test_bytes_that_are_no_text_are_refused(martlet, tiny_cpm1):
    done = martlet("write", tiny_cpm1, "却\udcff")
    assert done.code == 2
    assert "not valid UTF-8" in done.stderr


def test_no_verb_shows_the_help(martlet):
    assert martlet() == martlet("--help")


def test_an_unknown_verb_gives_2(martlet):
    done = martlet("dance")
    assert done.code == 2
    assert "'dance'" in done.stderr


def test_a_missing_argument_gives_2(martlet):
    done = martlet("write")
    assert done.code == 2
    assert "MODEL" in done.stderr


def test_an_unknown_model_gives_3_and_names_the_bundled_ones(martlet):
    done = martlet("write", "cpm9-mini", "却说")
    assert done.code == 3
    assert "cpm1-mini" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_its_line_in_the_list(martlet, verb):
    done = martlet(verb, "--help")
    assert done.code == 0
    assert done.stdout.startswith(f"Usage: martlet {verb}")
    assert f"  {verb} " in martlet("--help").stdout
    assert verbs.get_command(None, verb).name == verb


def test_ls_is_list(martlet):
    assert martlet("ls").stdout == martlet("list").stdout


def test_the_version_is_that_of_the_package(martlet):
    from martlet import __version__

    assert martlet("--version").stdout == f"martlet {__version__}\n"


def test_debug_shows_the_traceback_and_keeps_line_and_exit_code(martlet, tmp_path):
    plain = martlet("show", tmp_path)
    debug = martlet("--debug", "show", tmp_path)
    assert plain.code == debug.code == 3
    assert "Traceback" not in plain.stderr
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(plain.stderr)
