"""Launching kernels: structures and arguments anywhere, launches on a card."""

import ctypes
import threading

import pytest
import torch

from martlet.errors import DeviceError, MartletError
from martlet.kernels.cuda import driver
from martlet.kernels.cuda.compiler import compile_cubin
from martlet.kernels.cuda.driver import Module, architecture_of, device_limits
from martlet.kernels.cuda.launch_types import LaunchAttribute, LaunchConfig, parameters

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU")


def test_the_structures_have_the_layout_of_the_driver():
    # CUlaunchConfig and CUlaunchAttribute of cuda.h with 64-bit pointers.
    assert ctypes.sizeof(LaunchConfig) == 56
    assert LaunchConfig.shared_bytes.offset == 24
    assert LaunchConfig.stream.offset == 32
    assert LaunchConfig.attributes.offset == 40
    assert LaunchConfig.num_attributes.offset == 48
    assert ctypes.sizeof(LaunchAttribute) == 72
    assert LaunchAttribute.value.offset == 8
    assert LaunchAttribute.value.size == 64


class _Pair(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), ("second", ctypes.c_int))


def test_a_kernel_reads_each_argument_behind_its_pointer():
    tensor, pair = torch.ones(3), _Pair(7, 8)
    values, pointers = parameters((tensor, None, -5, 0.5, ctypes.c_int64(1 << 40), pair))
    assert [ctypes.sizeof(value) for value in values] == [8, 8, 4, 4, 8, 16]
    kinds = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_int64]
    read = [
        kind.from_address(pointer).value for kind, pointer in zip(kinds, pointers, strict=False)
    ]
    assert read == [tensor.data_ptr(), None, -5, 0.5, 1 << 40]
    assert _Pair.from_address(pointers[5]).second == 8


@pytest.mark.parametrize("number", [1 << 31, -(1 << 31) - 1])
def test_an_integer_that_would_lose_its_upper_bits_is_refused(number):
    with pytest.raises(OverflowError, match="32 bits"):
        parameters((number,))


def test_other_arguments_are_refused():
    with pytest.raises(TypeError, match="not str"):
        parameters(("text",))


def test_only_hopper_has_code_of_its_own():
    assert architecture_of((6, 1)) == "sm_61"
    assert architecture_of((9, 0)) == "sm_90a"
    assert architecture_of((12, 0)) == "sm_120"


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without a driver")
def test_a_machine_without_a_driver_is_told_so():
    with pytest.raises(DeviceError, match="libcuda") as caught:
        device_limits(0)
    assert isinstance(caught.value, MartletError)


SOURCE = """
extern "C" __global__ void scale(float* x, const float* factors, float factor, int count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) x[i] *= factors ? factors[i] : factor;
}

extern "C" __global__ void reverse(float* x, int count) {
  extern __shared__ float shared[];
  for (int i = threadIdx.x; i < count; i += blockDim.x) shared[i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) x[i] = shared[count - 1 - i];
}
"""


@pytest.fixture
def module() -> Module:
    index = torch.cuda.current_device()
    architecture = architecture_of(torch.cuda.get_device_capability(index))
    return Module(compile_cubin(SOURCE, "test.cu", architecture), index)


def _numbers(count: int) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.float32, device="cuda")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dependent", [False, True])
def test_a_launch_computes_on_the_current_stream(module, dependent):
    x, factors = _numbers(1000), _numbers(1000)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        module["scale"]((4, 1, 1), 256, x, factors, 0.0, 1000, dependent=dependent)
        module["scale"]((4, 1, 1), 256, x, None, 0.5, 1000, dependent=dependent)
        y = x + 1
    torch.cuda.synchronize()
    assert torch.equal(y, _numbers(1000) ** 2 * 0.5 + 1)
    assert 0 < module["scale"].num_registers < 64
    assert module["scale"].local_bytes == 0
    assert module["scale"] is module["scale"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dependent", [False, True])
def test_launches_are_captured_into_a_graph(module, dependent):
    x = torch.ones(1000, device="cuda")
    kernel, graph = module["scale"], torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(3):
            kernel((4, 1, 1), 256, x, None, 2.0, 1000, dependent=dependent)
    assert torch.equal(x, torch.ones_like(x))
    for _ in range(2):
        graph.replay()
    assert torch.equal(x, torch.full_like(x, 64.0))


@pytest.mark.gpu
@needs_gpu
def test_a_block_may_have_all_the_shared_memory_of_the_card(module):
    kernel, limits = module["reverse"], device_limits()
    for shared_bytes in (48 << 10, limits.shared_bytes_per_block_optin, 1 << 10):
        x = _numbers(shared_bytes // 4)
        kernel((1, 1, 1), 1024, x, x.shape[0], shared_bytes=shared_bytes)
        assert torch.equal(x, _numbers(shared_bytes // 4).flip(0))
    with pytest.raises(DeviceError, match="cuFuncSetAttribute"):
        kernel((1, 1, 1), 32, x, 1, shared_bytes=limits.shared_bytes_per_block_optin + 4)


@pytest.mark.gpu
@needs_gpu
def test_a_thread_that_used_no_card_yet_can_launch(module):
    x = torch.ones(1000, device="cuda")
    kernel, failures = module["scale"], []

    def launch() -> None:
        try:
            kernel((4, 1, 1), 256, x, None, 3.0, 1000)
        except MartletError as error:
            failures.append(error)

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert failures == []
    assert torch.equal(x, torch.full_like(x, 3.0))


@pytest.mark.gpu
@needs_gpu
def test_what_the_driver_refuses_is_an_error_with_its_words(module):
    x = torch.ones(8, device="cuda")
    with pytest.raises(DeviceError, match=r"cuLaunchKernelEx .*invalid argument"):
        module["scale"]((1, 1, 1), 2048, x, None, 1.0, 8)
    with pytest.raises(DeviceError, match="named symbol not found"):
        module["missing"]
    if driver._parameter_bytes(module["scale"]._function) is not None:
        with pytest.raises(TypeError, match=r"takes arguments of \(8, 8, 4, 4\) bytes"):
            module["scale"]((1, 1, 1), 32, x, None, 1.0)


@pytest.mark.gpu
@needs_gpu
def test_the_limits_are_those_that_torch_names():
    properties = torch.cuda.get_device_properties()
    limits = device_limits(torch.device("cuda"))
    assert limits.num_multiprocessors == properties.multi_processor_count
    assert limits.capability == (properties.major, properties.minor)
    assert limits.shared_bytes_per_multiprocessor == properties.shared_memory_per_multiprocessor
    assert 48 << 10 <= limits.shared_bytes_per_block_optin <= 256 << 10
