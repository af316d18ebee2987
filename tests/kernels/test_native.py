"""From C to a library of this process, by the compiler of this system."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from martlet.kernels.cpu import native
from martlet.kernels.cpu.native import NativeError, load_native, load_packaged, open_library

pytestmark = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler")

NAME = "grouped_linear"
SOURCES = Path(native.__file__).parent


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "martlet" / "kernels"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quick compiler in front of the real one, which counts its calls in a file beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "cc"
    script.write_text(
        f'#!/bin/sh\necho called >>"{folder}/calls"\nexec {native.find_compiler()} "$@" -O0\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return script


def _num_calls(compiler: Path) -> int:
    calls = compiler.parent / "calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_the_library_is_compiled_once_and_kept(cache_home: Path, compiler: Path) -> None:
    for _ in range(2):
        library, origin = load_native(NAME)
        assert library.martlet_grouped_linear is not None
        assert str(compiler) in origin
    assert _num_calls(compiler) == 1
    assert [path.suffix for path in cache_home.iterdir()] == [".so"]


def test_another_compiler_compiles_anew(cache_home: Path, compiler: Path) -> None:
    load_native(NAME)
    compiler.write_text(compiler.read_text() + "# newer\n")
    load_native(NAME)
    assert _num_calls(compiler) == 2


def test_a_damaged_library_of_the_cache_is_compiled_again(cache_home: Path, compiler: Path) -> None:
    load_native(NAME)
    (file,) = cache_home.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    load_native(NAME)
    assert _num_calls(compiler) == 2


def test_a_cache_that_cannot_be_written_costs_a_compilation_only(
    tmp_path: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert load_native(NAME)[0].martlet_grouped_linear is not None
    assert _num_calls(compiler) == 2


def test_processes_that_compile_at_once_all_get_a_sound_library(
    cache_home: Path, compiler: Path
) -> None:
    program = (
        "from martlet.kernels.cpu.native import load_native\n"
        f"assert load_native({NAME!r})[0].martlet_grouped_linear"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert [path.suffix for path in cache_home.iterdir()] == [".so"]
    num_calls = _num_calls(compiler)
    load_native(NAME)
    assert _num_calls(compiler) == num_calls


def test_without_a_compiler_the_reason_is_told(
    cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeError, match=r"no C compiler \(cc, gcc, clang\) was found"):
        load_native(NAME)


def test_a_compiler_that_fails_is_quoted(cache_home: Path, compiler: Path) -> None:
    compiler.write_text("#!/bin/sh\necho 'fatal error: no such header' >&2\nexit 1\n")
    with pytest.raises(NativeError, match="fatal error: no such header"):
        load_native(NAME)
    assert not cache_home.exists()


def test_what_is_no_library_is_refused() -> None:
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NativeError, match="cannot be loaded"):
        open_library(b"not a library", NAME)
    assert len(os.listdir("/proc/self/fd")) == handles


def test_each_library_is_itself(tmp_path: Path) -> None:
    numbers = []
    for number in (1, 2):
        command = [str(native.find_compiler()), "-shared", "-fPIC", "-x", "c", "-"]
        program = f"int number(void) {{ return {number}; }}".encode()
        path = tmp_path / "number.so"
        subprocess.run([*command, "-o", str(path)], input=program, check=True)
        numbers.append(open_library(path.read_bytes(), "number").number())
    assert numbers == [1, 2]


def _package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(native.__file__).with_name(f"{NAME}.c")
    command = [str(native.find_compiler()), "-O0", "-fPIC", "-shared", str(source)]
    subprocess.run([*command, "-o", str(folder / f"{NAME}.so")], check=True)
    monkeypatch.setattr(native, "files", lambda _: folder)


def test_a_packaged_library_serves_where_no_compiler_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(native, "_flags", lambda: "fpu avx2 bmi1 bmi2 f16c fma movbe")
    library, origin = load_native(NAME)
    assert library.martlet_grouped_linear is not None
    assert "package" in origin


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AVX2 is a matter of x86-64")
def test_a_packaged_library_is_not_tried_on_an_older_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(tmp_path, monkeypatch)
    monkeypatch.setattr(native, "_flags", lambda: "fpu sse2 avx")
    with pytest.raises(NativeError, match="AVX2"):
        load_packaged(NAME)


def test_the_key_knows_this_processor() -> None:
    machine, _, flags = native._processor()
    assert machine == os.uname().machine
    assert len(flags.split()) > 3


def test_the_source_has_no_warnings(tmp_path: Path) -> None:
    source = Path(native.__file__).with_name(f"{NAME}.c")
    command = [str(shutil.which("cc") or native.find_compiler()), "-std=gnu11", "-O1"]
    command += ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", str(source)]
    for extra in ([], ["-march=native"]):
        subprocess.run([*command, *extra, "-o", str(tmp_path / "out.o")], check=True)


def test_the_image_compiles_with_the_same_flags() -> None:
    dockerfile = (Path(__file__).parents[2] / "docker" / "Dockerfile").read_text()
    loop, command = re.findall(r"for name in ([^;]*); do \\\n *gcc (.*?)\|\|", dockerfile, re.S)[0]
    assert {f"{name}.c" for name in loop.split()} == {path.name for path in SOURCES.glob("*.c")}
    flags = set(command.split())
    assert {flag for flag in native._FLAGS if flag != "-march=native"} <= flags
    assert "target=-march=x86-64-v3" in dockerfile
    assert '"src/martlet/kernels/cpu/$name.so"' in command
