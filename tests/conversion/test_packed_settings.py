import json
from pathlib import Path

import pytest
from transformers import AwqConfig, GPTQConfig

from martlet.conversion.packed_settings import PackedSettings, read_packed_settings
from martlet.errors import ModelFileError

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def read(settings: object, folder: Path = Path("somewhere")) -> PackedSettings | None:
    return read_packed_settings(folder, {"quantization_config": settings})


def test_a_checkpoint_of_floats_has_no_settings(tmp_path):
    assert read_packed_settings(tmp_path, {"model_type": "llama"}) is None


def test_the_first_gptq_format_has_zeros_less_one_and_the_second_has_not():
    assert read(GPTQ) == PackedSettings("gptq", 4, 128, is_symmetric=True, zero_offset=1)
    assert read({**GPTQ, "checkpoint_format": "gptq"}) == read(GPTQ)
    assert read({**GPTQ, "checkpoint_format": "gptq_v2"}).zero_offset == 0


def test_every_field_is_read():
    changes = {"bits": 8, "group_size": 32, "desc_act": True}
    assert read({**GPTQ, **changes}) == PackedSettings(
        "gptq", 8, 32, is_symmetric=True, zero_offset=1, is_reordered=True
    )
    assert read({**GPTQ, "sym": False}).is_symmetric is False
    assert read({**AWQ, "group_size": 64}) == PackedSettings("awq", 4, 64)
    assert read({**AWQ, "version": "GEMM", "zero_point": False}) == PackedSettings("awq", 4, 128)


@pytest.mark.oracle
def test_what_transformers_writes_is_read():
    gptq = GPTQConfig(bits=4, group_size=64, sym=False, desc_act=False)
    assert read(gptq.to_dict()) == PackedSettings("gptq", 4, 64, zero_offset=1)
    awq = AwqConfig(bits=4, group_size=64, zero_point=True).to_dict()
    assert read(json.loads(json.dumps(awq, default=str))) == PackedSettings("awq", 4, 64)


@pytest.mark.parametrize(
    ("group_size", "held"), [(32, 32), (64, 64), (128, 128), (256, 128), (96, 32), (-1, 128)]
)
def test_the_widest_of_our_groups_that_divides_theirs_holds_it(group_size, held):
    settings = read({**GPTQ, "group_size": group_size})
    assert settings.format.name == f"int4-g{held}"
    assert settings.num_groups(768) == (1 if group_size == -1 else 768 // group_size)


def test_older_checkpoints_have_the_settings_beside_the_configuration(tmp_path):
    older = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(older))
    assert read_packed_settings(tmp_path, {}) == PackedSettings("awq", 4, 64)
    gptq = {"bits": 4, "group_size": 32, "desc_act": False, "sym": False, "damp_percent": 0.01}
    (tmp_path / "quantize_config.json").write_text(json.dumps(gptq))
    assert read_packed_settings(tmp_path, {}) == PackedSettings("gptq", 4, 32, zero_offset=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GPTQ, "quant_method": "bitsandbytes"}, r"quant_method.*'bitsandbytes'.*gptq or awq"),
        ({"bits": 4}, "quant_method.*None"),
        ({**GPTQ, "quant_method": ["gptq"]}, r"quant_method.*\['gptq'\]"),
        ({**GPTQ, "bits": 3}, "bits.*3, supported is 4 or 8"),
        ({**GPTQ, "bits": True}, "bits.*True"),
        ({**GPTQ, "bits": 2.5}, "bits.*2.5"),
        ({**AWQ, "bits": 8}, "bits.*8, supported is 4"),
        ({**GPTQ, "bits": 8, "sym": False}, "sym.*False, supported is true where bits is 8"),
        ({**GPTQ, "sym": "yes"}, "sym.*'yes'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format.*'marlin'.*gptq or gptq_v2"),
        ({**GPTQ, "is_marlin_format": True}, "is_marlin_format"),
        ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype.*'int64'.*int32"),
        ({**GPTQ, "dynamic": {"+:.*down_proj": {"bits": 8}}}, "dynamic.*one setting"),
        ({**AWQ, "version": "gemv_fast"}, "version.*'gemv_fast', supported is gemm"),
        ({**GPTQ, "group_size": 0}, "group_size.*0, supported is -1 or a multiple of 32"),
        ({**GPTQ, "group_size": 16}, "group_size.*16"),
        ({**AWQ, "group_size": -2}, "group_size.*-2"),
        ({**AWQ, "group_size": "128"}, "group_size.*'128'"),
        ([1], "is no object"),
    ],
)
def test_what_is_not_supported_is_named_with_what_is(settings, message):
    with pytest.raises(ModelFileError, match=message):
        read(settings)


def test_names_of_linears_that_were_left_float_are_no_matter():
    assert read({**GPTQ, "dynamic": {"-:.*lm_head": {}}}) == read(GPTQ)
