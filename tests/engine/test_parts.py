import pytest
import torch

from martlet.engine.parts import bytes_per_weight, head_bytes, lay_out_parts, work_of
from martlet.models.architecture import output_matrix_of
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT8, WeightFormat

T5 = {
    "model_type": "t5",
    "vocab_size": 100,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
TIED_T5 = {**T5, "tie_word_embeddings": True}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 101,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TIED_LLAMA = {**LLAMA, "tie_word_embeddings": True}


INT4 = WeightFormat(4, 32)


def parts_of(config, format=INT8):
    specs = load_architecture(config).block_specs()
    return lay_out_parts(specs, lambda _, t: None if t.kind == "other" else format, torch.float16)


def names_in(part):
    return [entry.name for entry in part.entries]


def test_what_a_decoder_block_reads_once_a_text_is_a_part_of_its_own():
    parts = parts_of(T5)
    assert list(parts) == [
        "fixed",
        "encoder.0",
        "encoder.1",
        "decoder.0",
        "decoder.0.once",
        "decoder.1",
        "decoder.1.once",
        "decoder.2",
        "decoder.2.once",
    ]
    assert names_in(parts["decoder.1.once"]) == [
        "layer.1.EncDecAttention.k.weight",
        "layer.1.EncDecAttention.v.weight",
    ]
    assert parts["decoder.1.once"].block == "decoder.1"


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_model_without_encoder_reads_nothing_once_a_text(config):
    assert list(parts_of(config)) == ["fixed", "decoder.0", "decoder.1"]


@pytest.mark.parametrize("config", [T5, TIED_T5, GPT2, LLAMA])
def test_every_tensor_of_a_block_is_in_exactly_one_of_its_parts(config):
    parts = parts_of(config)
    for spec in load_architecture(config).block_specs():
        shapes = {
            entry.name: entry.shape
            for part in parts.values()
            if part.block == spec.name
            for entry in part.entries
        }
        count = sum(len(part.entries) for part in parts.values() if part.block == spec.name)
        assert shapes == {tensor.name: tensor.shape for tensor in spec.tensors}
        assert count == len(spec.tensors)


@pytest.mark.parametrize("config", [T5, GPT2, LLAMA])
def test_only_the_chosen_matrices_are_tiles(config):
    kinds = {
        (spec.name, tensor.name): tensor.kind
        for spec in load_architecture(config).block_specs()
        for tensor in spec.tensors
    }
    for format in (INT8, INT4, None):
        for part in parts_of(config, format).values():
            for entry in part.entries:
                is_matrix = kinds[part.block, entry.name] != "other"
                assert entry.format == (format if is_matrix else None), (part.name, entry.name)
                assert entry.is_tiled == (entry.format is not None)


# Rows are padded to 16, columns to 32 or 64; what is no integer is float16.
@pytest.mark.parametrize(
    ("config", "format", "num_bytes"),
    [
        (T5, INT8, 112 * 32),
        (T5, INT4, 112 * 64 // 2 + 112 * 2 * 2),
        (T5, None, 100 * 32 * 2),
        (TIED_T5, INT8, 112 * 32),
        (GPT2, INT8, 112 * 32),
        (GPT2, WeightFormat(8, 32), 112 * 32 + 112 * 2),
        (GPT2, None, 101 * 32 * 2),
        (LLAMA, INT8, 112 * 32),
        (TIED_LLAMA, None, 100 * 32 * 2),
    ],
)
def test_a_step_reads_one_output_matrix_among_the_fixed_weights(config, format, num_bytes):
    assert head_bytes(parts_of(config, format)["fixed"], load_architecture(config)) == num_bytes


@pytest.mark.parametrize(
    ("format", "num_bytes"),
    [
        (None, 2),
        (INT8, 1),
        (INT4, 0.5 + 2 / 32),
        (WeightFormat(4, 128), 0.5 + 2 / 128),
        (WeightFormat(4, 64, has_zeros=True), 0.5 + 4 / 64),
    ],
)
def test_the_bytes_of_a_weight_are_those_of_its_integer_and_its_share_of_scales(format, num_bytes):
    assert bytes_per_weight(parts_of(GPT2, format)) == pytest.approx(num_bytes)


def test_the_bytes_of_a_weight_are_a_mean_where_formats_are_mixed():
    def format_of(spec, tensor):
        if tensor.kind == "other":
            return None
        return INT8 if spec.name == "decoder.0" else INT4

    parts = lay_out_parts(load_architecture(GPT2).block_specs(), format_of, torch.float16)
    assert bytes_per_weight(parts) == pytest.approx((1 + 0.5625) / 2)


def test_an_output_matrix_of_its_own_counts_and_not_the_table_beside_it():
    parts = parts_of(T5)
    assert {"shared.weight", "lm_head.weight"} <= set(names_in(parts["fixed"]))
    by_name = {entry.name: entry for entry in parts["fixed"].entries}
    table = by_name["shared.weight"]
    num_bytes = head_bytes(parts["fixed"], load_architecture(T5))
    assert num_bytes == by_name["lm_head.weight"].nbytes == table.nbytes
    assert "lm_head.weight" not in names_in(parts_of(TIED_T5)["fixed"])


NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
BLOOM = {"model_type": "bloom", "vocab_size": 100, "hidden_size": 32, "n_layer": 1, "n_head": 2}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (T5, "lm_head.weight"),
        (TIED_T5, "shared.weight"),
        (GPT2, "transformer.wte.weight"),
        (TIED_LLAMA, "model.embed_tokens.weight"),
        (NEOX, "embed_out.weight"),
        (BLOOM, "transformer.word_embeddings.weight"),
    ],
)
def test_the_output_matrix_is_the_head_or_else_the_embedding(config, wanted):
    architecture = load_architecture(config)
    assert output_matrix_of(architecture).name == wanted
    assert work_of(parts_of(config), 8, architecture).fixed_decode_bytes >= 100 * 32
