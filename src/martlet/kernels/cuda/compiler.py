"""From CUDA C++ to machine code, when a kernel is first used on a card.

The compiler is NVRTC, NVIDIA's library for this, called through ctypes. NVIDIA's Python bindings
would do the same, but come neither with torch for CUDA 12 nor with torch for processors, on
which the sources are compiled as a test; the library itself comes with every CUDA torch.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import time
from collections.abc import Collection, Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from martlet.errors import KernelCompileError
from martlet.kernels.code_cache import cache_key, read_code, write_code

__all__ = [
    "Nvrtc",
    "compile_cubin",
    "compile_options",
    "compile_seconds",
    "find_nvrtc",
    "read_source",
]

Defines = Mapping[str, int | str]

_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


def read_source(name: str) -> str:
    """The text of ``NAME.cu`` beside this module."""
    return (files("martlet.kernels.cuda") / f"{name}.cu").read_text(encoding="utf-8")


@functools.cache
def _headers() -> Mapping[str, str]:
    """What sources may include: each ``.cuh`` beside this module, by its name."""
    folder = files("martlet.kernels.cuda")
    entries = sorted((e for e in folder.iterdir() if e.name.endswith(".cuh")), key=lambda e: e.name)
    return {entry.name: entry.read_text(encoding="utf-8") for entry in entries}


def compile_options(architecture: str, defines: Defines | None = None) -> tuple[str, ...]:
    """Options that every kernel is compiled with, and ``-DNAME=VALUE`` for each definition.

    Arithmetic stays exact to the standard: a source that wants an approximate function calls it
    by name. Line information costs no speed, and lets profilers and sanitizers name a line.
    """
    choices = sorted((defines or {}).items())
    return (
        f"--gpu-architecture={architecture}",
        "-std=c++17",
        "-default-device",
        "-lineinfo",
        *(f"-D{name}={value}" for name, value in choices),
    )


def compile_cubin(
    source: str, name: str, architecture: str, defines: Defines | None = None
) -> bytes:
    """Machine code of a source for one architecture, compiled or from the user's cache.

    Args:
        source: CUDA C++; it may include the ``.cuh`` files of this package and nothing else.
        name: What messages and line information call the source.
        architecture: As the compiler says it: ``sm_80``, or ``sm_90a`` for code that only this
            very card runs.
        defines: Macros of the source.

    Raises:
        KernelCompileError: No compiler was found, none knows the architecture, or the source is
            not valid; the error then carries the log.
    """
    nvrtc = find_nvrtc(architecture)
    options = compile_options(architecture, defines)
    headers = (part for header in _headers().items() for part in header)
    key = cache_key((nvrtc.version, name, source, *options, *headers))
    cubin = read_code(key)
    if cubin is None:
        start = time.perf_counter()
        cubin, _ = nvrtc.compile(source, name, options)
        _spent_seconds.append(time.perf_counter() - start)
        write_code(key, cubin)
    return cubin


_spent_seconds: list[float] = []


def compile_seconds() -> float:
    """Seconds that this process has spent compiling so far; 0 where all was in the cache."""
    return sum(_spent_seconds)


class Nvrtc:
    """One copy of the compiler.

    Attributes:
        path: The file, or the name that the dynamic linker found it by.
        version: Such as ``12.9``.
        architectures: Those it compiles for, such as 90, lowest first.

    Raises:
        OSError: The library cannot be loaded.
        AttributeError: It is older than CUDA 11.2 and cannot say what it compiles for.
    """

    def __init__(self, path: str, mode: int = ctypes.DEFAULT_MODE) -> None:
        self.path = path
        self._library = ctypes.CDLL(path, mode=mode)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        self.architectures = tuple(sorted(numbers))

    def compile(self, source: str, name: str, options: tuple[str, ...]) -> tuple[bytes, str]:
        """Machine code and what the compiler said about it, which is empty when all is well.

        Raises:
            KernelCompileError: The source is not valid.
        """
        program = ctypes.c_void_p()
        headers = _headers()
        texts, names = _strings(headers.values()), _strings(headers.keys())
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            *(source.encode(), name.encode()),
            *(len(headers), texts, names),
        )
        try:
            code = self._library.nvrtcCompileProgram(program, len(options), _strings(options))
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if code != 0:
                raise self._compile_error(code, name, options, log)
            return self._read(program, "CUBIN"), log
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _compile_error(
        self, code: int, name: str, options: tuple[str, ...], log: str
    ) -> KernelCompileError:
        lines = log.splitlines() or [self._reason(code)]
        first = next((line for line in lines if "error" in line), lines[0])
        message = f"NVRTC {self.version} cannot compile {name} with {' '.join(options)}: {first}"
        return KernelCompileError(message, log, options)

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            raise KernelCompileError(f"{function} of {self.path} failed: {self._reason(code)}")

    def _reason(self, code: int) -> str:
        reason: bytes = self._library.nvrtcGetErrorString(code)
        return reason.decode()


@functools.cache
def find_nvrtc(architecture: str) -> Nvrtc:
    """The first compiler on this machine that knows the architecture.

    Raises:
        KernelCompileError: There is none; the message names the torch build that brings one.
    """
    seen = []
    for nvrtc in _installed():
        if _number(architecture) in nvrtc.architectures:
            return nvrtc
        seen.append(nvrtc)
    if not seen:
        raise KernelCompileError(
            "no NVRTC library (libnvrtc.so.12 or .13) was found beside torch, in nvidia packages "
            "or by the dynamic linker; install a CUDA build of torch, or nvidia-cuda-nvrtc-cu12"
        )
    known = "; ".join(
        f"{n.version} knows sm_{n.architectures[0]} to sm_{n.architectures[-1]}" for n in seen
    )
    # CUDA 13 dropped what came before Turing; torch keeps builds for CUDA 12.6 for those cards.
    is_older = all(_number(architecture) < n.architectures[0] for n in seen)
    build = "torch built for CUDA 12.6 (cu126)" if is_older else "the newest CUDA build of torch"
    raise KernelCompileError(
        f"no NVRTC here compiles for this card, {architecture} ({known}); install {build}"
    )


def _number(architecture: str) -> int:
    """90 for sm_90 and for sm_90a, which the compiler knows but does not list."""
    return int(architecture.removeprefix("sm_").rstrip("af"))


def _strings(values: Collection[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))


def _installed() -> Iterator[Nvrtc]:
    """Compilers in the order of trust: in use already, packages around torch, the system's."""
    places = [(name, os.RTLD_NOLOAD | ctypes.DEFAULT_MODE) for name in _NAMES]
    places += [(str(path), ctypes.DEFAULT_MODE) for path in _packaged()]
    places += [(name, ctypes.DEFAULT_MODE) for name in _NAMES]
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    places.append((str(toolkit / "lib64/libnvrtc.so"), ctypes.DEFAULT_MODE))
    for path, mode in places:
        try:
            yield Nvrtc(path, mode)
        except (OSError, AttributeError):
            continue


def _packaged() -> Iterator[Path]:
    """Libraries in the packages that torch is installed with.

    The library finds its builtins beside itself, by the search path that it was built with.
    """
    for package, pattern in (("nvidia", "*/lib/libnvrtc.so*"), ("torch", "lib/libnvrtc[.-]*")):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(folder).glob(pattern)):
                if "builtins" not in path.name:
                    yield path
