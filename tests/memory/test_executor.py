import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.compression.requantize import in_formats
from martlet.errors import CapacityError
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import ResidentExecutor, resident_nbytes
from martlet.memory.plan import BlockSize, Budget, make_plan
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT8
from martlet.quantization.scheme import QuantizedTensor

CPU = torch.device("cpu")


def _executor(store, dtype=torch.float32, transform=None):
    blocks = [BlockSize(name, store.block_nbytes(name)) for name in store.block_names]
    plan = make_plan(blocks, "cpu", Budget(0, 1 << 40))
    return ResidentExecutor(plan, store, CPU, dtype, transform)


def test_int8_weights_stay_the_mapped_file(tiny_cpm2):
    store = open_store(tiny_cpm2)
    (_, weights), *_ = _executor(store).blocks("decode")
    stored = store.block("decoder.0")
    num_int8 = 0
    for name, weight in weights.items():
        if isinstance(weight, QuantizedTensor):
            num_int8 += 1
            assert weight.data.dtype == torch.int8
            assert weight.data.data_ptr() == stored[name].data.data_ptr()
    assert num_int8 == 11  # q k v o twice, wi_0 wi_1 wo


def test_float_weights_are_cast_once(tiny_cpm1):
    executor = _executor(open_store(tiny_cpm1), torch.bfloat16)
    table = executor.fixed()["transformer.wte.weight"]
    assert table.dtype == torch.bfloat16
    assert executor.fixed()["transformer.wte.weight"] is table


def test_blocks_come_in_order_and_again(tiny_cpm2):
    executor = _executor(open_store(tiny_cpm2))
    for phase in ("encode", "prefill", "decode"):
        assert [index for index, _ in executor.blocks(phase)] == [0, 1]
        assert [index for index, _ in executor.blocks(phase)] == [0, 1]


def test_the_transform_sees_every_block(tiny_cpm1):
    store = open_store(tiny_cpm1)
    formats = {
        spec.name: {t.name: None if t.kind == "other" else INT8 for t in spec.tensors}
        for spec in load_architecture(store.config).block_specs()
    }
    cpu = torch.device("cpu")
    executor = _executor(
        store, transform=lambda name, weights: in_formats(weights, formats[name], cpu)
    )
    assert isinstance(executor.fixed()["transformer.wte.weight"], QuantizedTensor)
    assert isinstance(executor.fixed()["transformer.wpe.weight"], torch.Tensor)
    for _, weights in executor.blocks("decode"):
        assert isinstance(weights["attn.c_attn.weight"], QuantizedTensor)


def test_the_size_of_a_loaded_weight_is_what_it_takes():
    weight = torch.zeros(3, 5, dtype=torch.float16)
    assert resident_nbytes(weight, torch.float32) == weight.float().nbytes
    quantized = QuantizedTensor(torch.zeros(3, 5, dtype=torch.int8), torch.zeros(3))
    assert resident_nbytes(quantized, torch.float32) == 27


def test_an_allocation_that_fails_is_one_line_with_the_next_step():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(CapacityError, match="out of memory while loading; buy more"):  # noqa: SIM117
            with report_out_of_memory("loading", "buy more"):
                raise error


def test_the_real_allocator_is_recognised():
    with pytest.raises(CapacityError), report_out_of_memory("asking for an exbibyte", "ask less"):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a bug"), report_out_of_memory("x", "y"):
        raise RuntimeError("a bug")
