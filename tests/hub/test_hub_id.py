import pytest

from martlet.errors import ModelNotFoundError
from martlet.hub.hub_id import HubId, parse_hub_id


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Qwen/Qwen3-8B", HubId("Qwen/Qwen3-8B")),
        ("a/b@v1.0", HubId("a/b", "v1.0")),
        ("a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
        ("a/b:Q4_K_M", HubId("a/b", "main", "Q4_K_M")),
        ("a/b@main:BF16/x-00001-of-00002.gguf", HubId("a/b", "main", "BF16/x-00001-of-00002.gguf")),
    ],
)
def test_a_name_of_the_hub_has_a_revision_and_a_file(text, parts):
    assert parse_hub_id(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a/b/c",
        "a/b/c/d",
        "../b",
        "a/..",
        "a/.b",
        "a/b..c",
        "%2e%2e/b",
        "a/%2e%2e",
        "a/b\0",
        "a/b\n",
        "a\\b/c",
        "a/b\\..\\c",
        "a/",
        "/b",
        "a/b c",
        "a/b?x=1",
        "a/b#x",
        "а/кириллица",
        "a--b/c",
        "a/b.git",
        "a/" + "b" * 97,
        "a/" + "b" * 10_000,
        "a/b@",
        "a/b@..",
        "a/b@x/../y",
        "a/b@-x",
        "a/b@x.lock",
        "a/b@" + "x" * 500,
        "a/b:",
        "a/b:../x.gguf",
        "a/b:/x.gguf",
        "a/b:x\\y",
        "a/b:x%2fy",
        "a/b:" + "x" * 2000,
    ],
)
def test_a_name_that_could_mean_another_place_is_no_name(text):
    with pytest.raises(ModelNotFoundError) as caught:
        parse_hub_id(text)
    assert "no model is called" in str(caught.value)
    assert "ORG/NAME" in str(caught.value)
    assert len(str(caught.value)) < 600
