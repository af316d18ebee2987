import pytest

from martlet.hub.licence import read_licence


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\ntags:\n- x\nlicense: 'apache-2.0'\r\nlanguage: zh\n---\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3.1\n---\n", "llama3.1"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("# A model\nlicense: mit\n", None),
        ("---\nlicense: \x1b[31mred\n---\n", None),
        ("---\n" + "x" * 100_000 + "\nlicense: mit\n---\n", None),
        ("", None),
    ],
)
def test_the_card_of_a_folder_names_its_licence(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == licence


def test_without_a_card_and_for_a_damaged_file_nothing_is_told(tmp_path):
    assert read_licence(tmp_path) is None
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert read_licence(tmp_path / "x.gguf") is None
