import gc
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType as Type

import martlet
from martlet.api.opening import open_files
from martlet.checkpoint.store import open_store
from martlet.conversion.convert import convert
from martlet.conversion.detect import open_source
from martlet.conversion.gguf import GGUFSource
from martlet.conversion.gguf_tokenizer import gguf_tokenizer
from martlet.conversion.source_files import SourceFiles
from martlet.errors import DiskFullError, ModelFileError, UsageError

sys.path.insert(0, str(Path(__file__).parent))

from gguf_writing import add_byte_tokens, write_gguf

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}assistant: "


def model_keys(writer: gguf.GGUFWriter) -> None:
    add_byte_tokens(writer, 320)
    writer.add_chat_template(TEMPLATE)
    writer.add_add_bos_token(False)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = transformers.LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(model, folder / "tiny.gguf", "llama", matrices=Type.Q8_0, extra=model_keys)


def test_a_file_is_loaded_and_writes_what_its_converted_folder_writes(
    path: Path, tmp_path: Path
) -> None:
    model = martlet.load(path, device="cpu")
    report = convert(path, tmp_path / "folder")
    assert (report.format_name, report.family, report.quantize) == ("gguf", "llama", "int8")
    folder = martlet.load(tmp_path / "folder", device="cpu")
    texts = [m.write("hello", max_tokens=12, temperature=0) for m in (model, folder)]
    assert texts[0] == texts[1]
    logits = [m.logits([1, 2, 3]) for m in (model, folder)]
    assert torch.equal(logits[0], logits[1])
    store = open_store(tmp_path / "folder")
    assert store.tokenizer is not None
    assert set(store.tokenizer.files) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert store.generation == {"eos_token_id": [256]}
    assert store.manifest.compression == {"method": "gguf", "imported": True}
    names = {
        weight.name: weight for name in store.block_names for weight in store.block_weights(name)
    }
    kept = names["model.layers.0.mlp.up_proj.weight"].format
    assert kept is not None and kept.name == "int8-g32"


def test_the_engine_gets_template_ends_and_special_tokens(path: Path) -> None:
    files = open_files(path)
    assert isinstance(files, SourceFiles)
    assert (files.quantize, files.usual_quantize) == ("int8", None)
    assert files.chat_template() == TEMPLATE
    assert files.special_tokens() == {"eos_token": "<|end|>"}
    assert files.generation == {"eos_token_id": [256]}
    tokenizer = files.load_tokenizer()
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("né 燕子 <|end|>")) == "né 燕子 <|end|>"
    assert tokenizer.special.eos == 256 and tokenizer.vocab_size == 320
    assert 256 not in tokenizer.encode("<|end|>")


def test_a_folder_with_one_file_is_that_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj-x.gguf").write_bytes(b"GGUF")
    (tmp_path / "a.gguf").symlink_to(path)
    assert isinstance(open_files(tmp_path), SourceFiles)
    assert isinstance(open_source(tmp_path), GGUFSource)
    (tmp_path / "b.gguf").symlink_to(path)
    with pytest.raises(ModelFileError, match=r"holds a\.gguf, b\.gguf; give the path of one"):
        open_files(tmp_path)


def test_another_tokenizer_may_be_chosen(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no vocabulary for llama"):
        open_source(path, tokenizer=tmp_path)
    state = GGUFSource(path).tokenizer
    assert state is not None
    chosen = tmp_path / "tokenizer.json"
    chosen.write_text(state.files["tokenizer.json"].read_text())
    source = open_source(path, tokenizer=tmp_path)
    assert source.tokenizer is not None and source.tokenizer.files == {"tokenizer.json": chosen}


def test_files_are_unpacked_when_asked_for_and_go_with_their_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source: GGUFSource | None = GGUFSource(path)
    assert source is not None and source.tokenizer is not None
    files: Any = source.tokenizer.files
    assert list(tmp_path.iterdir()) == []
    assert "tokenizer.json" in files and "vocab.json" not in files and len(files) == 3
    with pytest.raises(KeyError):
        files["vocab.json"]
    assert json.loads(files["tokenizer.json"].read_text())["model"]["type"] == "BPE"
    assert len(list(tmp_path.iterdir())) == 1
    source = files = None
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    source = GGUFSource(path)
    assert source.tokenizer is not None
    with pytest.raises(DiskFullError, match="cannot be written to a temporary folder"):
        source.tokenizer.files["tokenizer.json"]


def test_a_file_without_a_vocabulary_has_no_tokenizer() -> None:
    assert gguf_tokenizer({}, Path("m.gguf")) == (None, {})


def test_defaults_of_sampling_come_under_the_names_of_generation_config() -> None:
    keys = {"temp": 0.6000000238418579, "top_k": 20, "top_p": 0.949999988079071, "sequence": "x"}
    metadata = {f"general.sampling.{name}": value for name, value in keys.items()}
    assert gguf_tokenizer(metadata, Path("m.gguf")) == (
        None,
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    )
