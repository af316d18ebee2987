from collections.abc import Mapping

import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.errors import CapacityError
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import ResidentExecutor
from martlet.memory.plan import BlockSize, Budget, make_plan
from martlet.quantization.scheme import QuantizedTensor

CPU = torch.device("cpu")


def _executor(store, dtype=torch.float32, source=None):
    blocks = [BlockSize(name, store.block_nbytes(name)) for name in store.block_names]
    plan = make_plan(blocks, "cpu", Budget(0, 1 << 40))
    return ResidentExecutor(plan, source or store, CPU, dtype)


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


def test_weights_that_are_made_when_asked_for_are_made_once_each(tiny_cpm1):
    store = open_store(tiny_cpm1)
    made = []

    class Lazy(Mapping):
        def __init__(self, block):
            self.block = block

        def __getitem__(self, name):
            made.append((self.block, name))
            return store.block(self.block)[name]

        def __iter__(self):
            return iter(store.block(self.block))

        def __len__(self):
            return len(store.block(self.block))

    class Source:
        def block(self, name):
            return Lazy(name)

    executor = _executor(store, source=Source())
    list(executor.blocks("decode"))
    assert sorted(made) == sorted((b, n) for b in store.block_names for n in store.block(b))


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
