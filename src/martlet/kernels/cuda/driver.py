"""Launching compiled kernels: the CUDA driver through ctypes, in torch's own context and streams.

NVIDIA's Python bindings are no part of every CUDA torch (see ``compiler``); the dozen functions
that are needed here are. Memory, streams and graphs stay torch's: a launch goes to the current
stream like any operation of torch, and is captured into a graph like one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping
from ctypes import byref
from dataclasses import dataclass

import torch

from martlet.errors import CapacityError, DeviceError
from martlet.kernels.cuda.compiler import compile_cubin, read_source
from martlet.kernels.cuda.launch_types import (
    PROGRAMMATIC_STREAM_SERIALIZATION,
    LaunchAttribute,
    LaunchConfig,
    parameters,
)

__all__ = [
    "DeviceLimits",
    "Kernel",
    "Module",
    "architecture_of",
    "break_launch_chain",
    "device_limits",
    "load_kernels",
]

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

# CUfunction_attribute
_SHARED_SIZE_BYTES = 1
_LOCAL_SIZE_BYTES = 3
_NUM_REGS = 4
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

# CUdevice_attribute
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81
_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97


@dataclass(frozen=True)
class DeviceLimits:
    """What launches are sized by.

    ``shared_bytes_per_block_optin`` is static and dynamic shared memory together, and what a
    kernel may be raised to; ``shared_bytes_per_multiprocessor`` is what its blocks share.
    """

    num_multiprocessors: int
    shared_bytes_per_block_optin: int
    shared_bytes_per_multiprocessor: int
    capability: tuple[int, int]


def load_kernels(
    source_name: str,
    defines: Mapping[str, int | str] | None = None,
    device: torch.device | int | None = None,
) -> Module:
    """The kernels of ``SOURCE_NAME.cu`` with these definitions on a card, by default the current.

    Compiled (or read from the user's cache) and loaded at the first call, which must not be
    inside the capture of a graph; kept for the life of the process.

    Raises:
        KernelCompileError: The source does not compile for this card.
        CapacityError: The card has no memory left for the code.
        DeviceError: The driver is not there or refuses the code.
    """
    return _load(source_name, tuple(sorted((defines or {}).items())), _index(device))


def device_limits(device: torch.device | int | None = None) -> DeviceLimits:
    """The limits of a card, by default the current.

    Raises:
        DeviceError: There is no driver or no such card.
    """
    return _limits(_index(device))


def architecture_of(capability: tuple[int, int]) -> str:
    """What the compiler calls cards of a compute capability.

    The code runs where it is compiled, so Hopper gets the instructions that only Hopper has.
    """
    return "sm_90a" if capability == (9, 0) else f"sm_{capability[0]}{capability[1]}"


class Module:
    """The kernels of one source on one card; ``module["name"]`` is the kernel of that name."""

    def __init__(self, cubin: bytes, device_index: int) -> None:
        self._device_index = device_index
        self._handle = ctypes.c_void_p()
        self._kernels: dict[str, Kernel] = {}
        with _context(device_index):
            _call("cuModuleLoadData", byref(self._handle), cubin)

    def __getitem__(self, name: str) -> Kernel:
        kernel = self._kernels.get(name)
        if kernel is None:
            function = ctypes.c_void_p()
            with _context(self._device_index):
                _call("cuModuleGetFunction", byref(function), self._handle, name.encode())
                kernel = Kernel(name, function, self._device_index)
            self._kernels[name] = kernel
        return kernel


class Kernel:
    """A kernel on one card, launched by calling it.

    Attributes:
        num_registers: Of each thread.
        local_bytes: Of each thread in device memory: arrays and registers that did not fit.
        shared_bytes: Static shared memory of each block.
    """

    def __init__(self, name: str, function: ctypes.c_void_p, device_index: int) -> None:
        self.name = name
        self._function = function
        self._device_index = device_index
        self._context = _primary_context(device_index)
        self._can_overlap = _limits(device_index).capability >= (9, 0)
        # Functions are loaded lazily, and must not be while a graph is captured.
        if hasattr(_library(), "cuFuncLoad"):  # a driver for CUDA 12.4 or later
            _call("cuFuncLoad", function)
        self.num_registers = self._attribute(_NUM_REGS)
        self.local_bytes = self._attribute(_LOCAL_SIZE_BYTES)
        self.shared_bytes = self._attribute(_SHARED_SIZE_BYTES)
        self._max_shared_bytes = self._attribute(_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        self._parameter_bytes = _parameter_bytes(function)

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: int,
        *arguments: object,
        shared_bytes: int = 0,
        dependent: bool = False,
    ) -> None:
        """Launch on torch's current stream of the kernel's card.

        Args:
            grid: Blocks in x, y and z.
            block: Threads of a block.
            arguments: A tensor or None stands for a pointer, an int for a 32-bit int, a float
                for a 32-bit float; ctypes values and structures are passed as they are. Tensors
                must be on the card, and live until torch may reuse their memory on this stream.
            shared_bytes: Dynamic shared memory of a block.
            dependent: The kernel waits for the one before it by itself (``griddepcontrol.wait``),
                so it may start while that one ends. Cards before 9.0 know no such thing.

        Raises:
            TypeError: An argument is of another kind, or number and sizes of the arguments are
                not those of the kernel (checked from CUDA 12.4 on).
            DeviceError: The driver refuses the launch.
        """
        values, pointers = parameters(arguments)
        if self._parameter_bytes is not None:
            argument_bytes = tuple(map(ctypes.sizeof, values))
            if argument_bytes != self._parameter_bytes:
                raise TypeError(
                    f"{self.name} takes arguments of {self._parameter_bytes} bytes, "
                    f"got {argument_bytes}"
                )
        config = LaunchConfig(*grid, block, 1, 1, shared_bytes, _stream(self._device_index))
        if dependent and self._can_overlap and not _take_break():
            config.attributes, config.num_attributes = _OVERLAP_POINTER, 1
        current = ctypes.c_void_p()
        _call("cuCtxGetCurrent", byref(current))
        if current.value == self._context.value and shared_bytes <= self._max_shared_bytes:
            _call("cuLaunchKernelEx", byref(config), self._function, pointers, None)
            return
        # Another card is current, or none yet in this thread; or more shared memory than before.
        with _context(self._device_index):
            self._allow_shared_bytes(shared_bytes)
            _call("cuLaunchKernelEx", byref(config), self._function, pointers, None)

    def _allow_shared_bytes(self, shared_bytes: int) -> None:
        if shared_bytes > self._max_shared_bytes:
            which = _MAX_DYNAMIC_SHARED_SIZE_BYTES
            _call("cuFuncSetAttribute", self._function, which, shared_bytes)
            self._max_shared_bytes = shared_bytes

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        _call("cuFuncGetAttribute", byref(value), which, self._function)
        return value.value


_is_chain_broken = False


def break_launch_chain() -> None:
    """Let the next launch start only when everything before it on its stream has ended.

    A dependent launch looks at weights before it waits for the kernel before it; where the weights
    themselves have just been copied, it must not.
    """
    global _is_chain_broken
    _is_chain_broken = True


def _take_break() -> bool:
    global _is_chain_broken
    was_broken, _is_chain_broken = _is_chain_broken, False
    return was_broken


_OVERLAP = LaunchAttribute(PROGRAMMATIC_STREAM_SERIALIZATION)
_OVERLAP.value[0] = 1  # programmaticStreamSerializationAllowed, an int
_OVERLAP_POINTER = ctypes.pointer(_OVERLAP)


@functools.cache
def _load(source_name: str, defines: tuple[tuple[str, int | str], ...], index: int) -> Module:
    architecture = architecture_of(_limits(index).capability)
    source = read_source(source_name)
    return Module(compile_cubin(source, f"{source_name}.cu", architecture, dict(defines)), index)


@functools.cache
def _limits(index: int) -> DeviceLimits:
    def read(which: int) -> int:
        value = ctypes.c_int()
        _call("cuDeviceGetAttribute", byref(value), which, _device(index))
        return value.value

    return DeviceLimits(
        read(_MULTIPROCESSOR_COUNT),
        read(_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        read(_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
        (read(_COMPUTE_CAPABILITY_MAJOR), read(_COMPUTE_CAPABILITY_MINOR)),
    )


def _parameter_bytes(function: ctypes.c_void_p) -> tuple[int, ...] | None:
    """The size of each parameter of a kernel, None where the driver cannot say (before 12.4)."""
    read = getattr(_library(), "cuFuncGetParamInfo", None)
    if read is None:
        return None
    sizes: list[int] = []
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    while read(function, ctypes.c_size_t(len(sizes)), byref(offset), byref(size)) == 0:
        sizes.append(size.value)
    return tuple(sizes)


def _index(device: torch.device | int | None) -> int:
    index = device.index if isinstance(device, torch.device) else device
    return torch.cuda.current_device() if index is None else index


def _stream(index: int) -> int:
    """The handle of torch's current stream, without the object around it where torch allows."""
    raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return torch.cuda.current_stream(index).cuda_stream if raw is None else raw(index)


@contextlib.contextmanager
def _context(index: int) -> Iterator[None]:
    """Torch's context of a card as the current one of this thread."""
    _call("cuCtxPushCurrent_v2", _primary_context(index))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", byref(ctypes.c_void_p()))


@functools.cache
def _primary_context(index: int) -> ctypes.c_void_p:
    context = ctypes.c_void_p()
    # Kept, as torch keeps it, until the process ends.
    _call("cuDevicePrimaryCtxRetain", byref(context), _device(index))
    return context


def _device(index: int) -> ctypes.c_int:
    device = ctypes.c_int()
    _call("cuDeviceGet", byref(device), index)
    return device


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceError(
            f"the driver's libcuda.so.1 cannot be loaded ({error}); install NVIDIA's driver, "
            "or run with --device cpu"
        ) from error
    code = library.cuInit(0)
    if code != 0:
        raise _error(library, "cuInit", code)
    return library


def _call(function: str, *arguments: object) -> None:
    library = _library()
    code = getattr(library, function)(*arguments)
    if code != 0:
        raise _error(library, function, code)


def _error(library: ctypes.CDLL, function: str, code: int) -> Exception:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, byref(text))
    reason = (text.value or b"unknown error").decode()
    message = f"{function} of the CUDA driver failed with code {code}: {reason}"
    return CapacityError(message) if code == _OUT_OF_MEMORY else DeviceError(message)
