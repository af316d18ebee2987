"""A folder as the hub has it chats with the template in it, as does what is made from it."""

import json

import pytest
import transformers

import martlet
from martlet.conversion.convert import convert
from martlet.engine.chat import ChatOptions, chat
from martlet.engine.request import SamplingParams
from martlet.errors import ModelFileError, UsageError

from ..tokenizers.made_templates import CHATML, GEMMA
from ..tokenizers.made_tokenizers import byte_level, write_folder

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 448,  # 25 more than the tokenizer has
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好<|im_end|>"},
]


def _jinja(folder):
    (folder / "chat_template.jinja").write_text(CHATML)


def _json(folder):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))


def _string(folder):
    _set(folder, CHATML)


def _named(folder):
    _set(folder, [{"name": "tools", "template": GEMMA}, {"name": "default", "template": CHATML}])


def _set(folder, template):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


@pytest.fixture
def folder(make_hub_folder):
    folder = make_hub_folder(config=LLAMA)
    return write_folder(folder, byte_level(IM), eos_token="<|im_end|>")


def _prompt(model):
    request = chat(model._model, MESSAGES, SamplingParams(), ChatOptions()).request
    return list(request.context.decoder_ids)


@pytest.mark.parametrize("put", [_jinja, _json, _string, _named])
def test_the_template_is_found_wherever_models_have_it(folder, tmp_path, put):
    put(folder)
    model = martlet.load(folder, device="cpu")
    assert model.tasks == ("chat", "write")
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ordinary = [MESSAGES[0], {"role": "user", "content": "你好"}]
    expected = oracle.apply_chat_template(
        ordinary, chat_template=CHATML, add_generation_prompt=True, return_dict=False
    )
    request = chat(model._model, ordinary, SamplingParams(), ChatOptions()).request
    assert list(request.context.decoder_ids) == expected
    assert request.eos_ids == {oracle.eos_token_id}
    convert(folder, tmp_path / "own")
    own = martlet.load(tmp_path / "own", device="cpu")
    assert own.tasks == ("chat", "write")
    assert _prompt(own) == _prompt(model)
    own.chat(MESSAGES, max_tokens=4)
    assert own.last_stats.prompt_tokens == len(_prompt(own))


def test_rows_without_a_token_are_never_chosen(folder):
    _jinja(folder)
    model = martlet.load(folder, device="cpu")
    assert model.tokenizer.vocab_size < LLAMA["vocab_size"]
    request = chat(model._model, MESSAGES, SamplingParams(), ChatOptions()).request
    assert request.constraint.suppressed()[model.tokenizer.vocab_size :].all()


def test_without_a_template_it_writes_alone(folder):
    model = martlet.load(folder, device="cpu")
    assert model.tasks == ("write",)
    with pytest.raises(UsageError, match="not chat; models with a chat template"):
        model.chat(MESSAGES)


def test_a_template_that_is_none_stops_chats_and_nothing_else(folder):
    (folder / "chat_template.jinja").write_text("{% for x in %}")
    model = martlet.load(folder, device="cpu")
    with pytest.raises(ModelFileError, match=r"chat template of .* cannot be used"):
        model.chat(MESSAGES)
    assert isinstance(model.write("hello", max_tokens=3), str)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"a" * (2 << 20)),
        ("chat_template.json", b'{"chat_template": 7}'),
        ("chat_template.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"chat_template": {"default": "x"}}'),
    ],
)
def test_damaged_files_of_templates_are_refused(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFileError):
        martlet.load(folder, device="cpu")
