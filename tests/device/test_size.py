import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.device.size import MIB, format_bytes, parse_bytes, whole_mib
from martlet.errors import UsageError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("6GiB", 6 << 30),
        ("6gib", 6 << 30),
        ("6G", 6 << 30),
        ("6GB", 6_000_000_000),
        ("1.5 KiB", 1536),
        (" 512M ", 512 << 20),
        ("2TiB", 2 << 40),
        ("123", 123),
        ("10B", 10),
        (4096, 4096),
    ],
)
def test_sizes_are_read_as_people_write_them(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "6 gigs",
        "-1GiB",
        "0",
        0,
        -5,
        "1e9",
        "6GiB6",
        "nan",
        "inf",
        True,
        None,
        1.5,
        "9" * 400,
    ],
)
def test_what_is_no_size_is_refused_with_the_flag_named(text):
    with pytest.raises(UsageError, match="--ram is "):
        parse_bytes(text, "--ram")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (25_270_000, "24.1 MiB"),
        (MIB - 1, "1.0 MiB"),
        (6 << 30, "6.0 GiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes_are_printed_with_one_decimal(num_bytes, text):
    assert format_bytes(num_bytes) == text


@given(st.integers(1, 1 << 55))
def test_a_printed_size_reads_back_as_about_the_same(num_bytes):
    # One decimal of a number between 1 and 1024 is off by 5 % at most.
    assert abs(parse_bytes(format_bytes(num_bytes)) - num_bytes) <= 0.05 * num_bytes


@given(st.integers(0, 1 << 55))
def test_whole_mebibytes_are_enough_and_not_one_too_many(num_bytes):
    mib = whole_mib(num_bytes)
    assert mib * MIB >= num_bytes
    assert (mib - 1) * MIB < num_bytes
