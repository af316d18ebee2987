"""From C to machine code for this very processor, by the system's own compiler.

Only what multiplies weights in groups, rounds large ones or reads GGUF files needs it, and only
when that is first used: about a second, then the code is in the user's cache. Where there is no
compiler, an image or a package may bring the library beside its source, compiled for every
processor with AVX2.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from martlet.kernels.code_cache import cache_key, read_code, write_code

__all__ = ["NativeError", "find_compiler", "load_native", "load_packaged", "open_library", "openmp"]

_COMPILERS = ("cc", "gcc", "clang")
# Contracted products would be rounded differently where a compiler sees fit, and a row's bits must
# not depend on that. Roundings leave no error number and no trap behind, so they can be vectors.
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
_TIMEOUT_SECONDS = 60
# What the packaged library may use, as the kernel of Linux calls it: x86-64-v3.
_PACKAGED_NEEDS = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})


class NativeError(Exception):
    """There is no native code; the message says why in a few words."""


def load_native(name: str) -> tuple[ctypes.CDLL, str]:
    """The library of ``NAME.c`` beside this module, and what made it.

    Raises:
        NativeError: There is no compiler and no library comes with the package, or neither works.
    """
    compiler = find_compiler()
    if compiler is None:
        return load_packaged(name), "library that came with the package"
    try:
        source = (files("martlet.kernels.cpu") / f"{name}.c").read_text(encoding="utf-8")
        code = _compiled(source, compiler)
    except OSError as error:
        raise NativeError(f"{compiler} could not be run: {error}") from error
    return open_library(code, name), f"compiled by {compiler}"


def find_compiler() -> str | None:
    """The path of the first C compiler of this system."""
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def _compiled(source: str, compiler: str) -> bytes:
    key = cache_key((source, *_FLAGS, *_identity(compiler), *_processor()))
    code = read_code(key, ".so")
    if code is None:
        code = _compile(source, compiler)
        write_code(key, code, ".so")
    return code


def _compile(source: str, compiler: str) -> bytes:
    try:
        with tempfile.TemporaryDirectory(prefix="martlet-") as folder:
            out = Path(folder) / "native.so"
            subprocess.run(
                [compiler, *_FLAGS, "-x", "c", "-", "-o", str(out)],
                input=source.encode(),
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
                check=True,
            )
            return out.read_bytes()
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        first = next((line for line in lines if "error" in line), f"exit {error.returncode}")
        raise NativeError(f"{compiler} failed: {first}") from error
    except subprocess.TimeoutExpired as error:
        raise NativeError(f"{compiler} took longer than {_TIMEOUT_SECONDS} s") from error


def open_library(code: bytes, name: str) -> ctypes.CDLL:
    """Machine code that is in memory, loaded without a file: no folder need be writable.

    Raises:
        NativeError: It cannot be loaded here.
    """
    try:
        handle = os.memfd_create(name)
    except OSError as error:
        raise NativeError(f"no memory file: {error}") from error
    try:
        with os.fdopen(os.dup(handle), "wb") as file:
            file.write(code)
        # Loaded libraries are known by their paths. The handle stays open with this one, so that
        # no other gets its number, and with it this library.
        return ctypes.CDLL(f"/proc/self/fd/{handle}")
    except OSError as error:
        os.close(handle)
        raise NativeError(f"the library cannot be loaded: {error}") from error


def openmp() -> ctypes.c_void_p | None:
    """What starts work on torch's own threads: a second set would compete with it for the cores."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except AttributeError:
        return None


def load_packaged(name: str) -> ctypes.CDLL:
    """``NAME.so`` beside this module, where this processor has what it was compiled for.

    Raises:
        NativeError: There is none, or it is for another processor.
    """
    packaged = files("martlet.kernels.cpu") / f"{name}.so"
    if not packaged.is_file():
        raise NativeError(f"no C compiler ({', '.join(_COMPILERS)}) was found")
    if platform.machine() == "x86_64" and _PACKAGED_NEEDS - set(_flags().split()):
        raise NativeError("the packaged library needs a processor with AVX2")
    with as_file(packaged) as path:
        return open_library(path.read_bytes(), name)


def _identity(compiler: str) -> tuple[str, ...]:
    """Another compiler under the same name has another size or time."""
    path = Path(compiler).resolve()
    state = path.stat()
    return str(path), str(state.st_size), str(state.st_mtime_ns)


def _processor() -> tuple[str, ...]:
    """What ``-march=native`` depends on: homes are shared by machines, and images are moved."""
    return platform.machine(), _cpu_lines("model name"), _flags()


def _flags() -> str:
    return _cpu_lines("flags") or _cpu_lines("Features")


def _cpu_lines(field: str) -> str:
    """What the kernel says of the first processor under that field."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""
