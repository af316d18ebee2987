"""The run-time compiler and its cache, with the real NVRTC and no card."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from martlet.errors import KernelCompileError, MartletError
from martlet.kernels.code_cache import cache_key, read_code, write_code
from martlet.kernels.cuda import compiler
from martlet.kernels.cuda.compiler import Nvrtc, compile_cubin, compile_options, find_nvrtc

SOURCE = """
extern "C" __global__ void scale(float* x, float factor, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) x[i] *= factor * FACTOR;
}
"""
ELF = b"\x7fELF"


@pytest.fixture
def cache_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "martlet" / "kernels"


@pytest.fixture
def compilations(monkeypatch) -> list[str]:
    """The name of each source that the real compiler was called for."""
    names: list[str] = []
    original = Nvrtc.compile

    def compile_and_count(self, source, name, options):
        names.append(name)
        return original(self, source, name, options)

    monkeypatch.setattr(Nvrtc, "compile", compile_and_count)
    return names


def _compile(factor: int = 2, architecture: str = "sm_90", source: str = SOURCE) -> bytes:
    return compile_cubin(source, "scale.cu", architecture, {"FACTOR": factor})


def test_a_source_becomes_machine_code_that_is_kept(cache_home, compilations):
    cubin = _compile()
    assert cubin.startswith(ELF)
    assert b"scale" in cubin
    assert _compile() == cubin
    assert compilations == ["scale.cu"]
    assert [path.suffix for path in cache_home.iterdir()] == [".cubin"]


def test_another_definition_source_or_architecture_is_other_code(cache_home, compilations):
    first = _compile()
    others = [
        _compile(factor=3),
        _compile(architecture="sm_80"),
        _compile(source=SOURCE.replace("*=", "+=")),
    ]
    assert len({first, *others}) == 4
    assert len(compilations) == len(list(cache_home.iterdir())) == 4


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:7], lambda data: b"", lambda data: data + b"x"],
    ids=["cut by a byte", "cut in the checksum", "empty", "longer"],
)
def test_a_damaged_file_of_the_cache_is_compiled_again(cache_home, compilations, damage):
    cubin = _compile()
    (file,) = cache_home.iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage(intact))
    assert _compile() == cubin
    assert len(compilations) == 2
    assert file.read_bytes() == intact


def test_a_folder_that_cannot_be_written_costs_only_time(cache_home, compilations):
    cache_home.parent.mkdir()
    cache_home.write_text("a file where the folder should be")
    assert _compile() == _compile()
    assert len(compilations) == 2


def test_without_a_home_there_is_no_cache(monkeypatch):
    def no_home(*_: object, **__: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    write_code("key", b"code")
    assert read_code("key") is None


# A key, and of which byte, how often repeated, the code is.
WRITE_MANY = """
import sys
from martlet.kernels.code_cache import write_code

for _ in range(50):
    write_code(sys.argv[1], bytes([int(sys.argv[2])]) * int(sys.argv[3]))
"""


def test_writers_at_the_same_time_never_leave_half_a_file(cache_home):
    key, sizes = cache_key(["concurrent"]), [100_000, 100_001, 100_002]
    codes = [bytes([n]) * size for n, size in enumerate(sizes)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache_home.parent.parent)}
    write_code(key, codes[0])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_MANY, key, str(n), str(size)], env=environment
        )
        for n, size in enumerate(sizes)
    ]
    while any(writer.poll() is None for writer in writers):
        assert read_code(key) in codes
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [path.name for path in cache_home.iterdir()] == [f"{key}.cubin"]


def test_parts_of_a_key_do_not_run_into_one_another():
    assert cache_key(["ab", "c"]) != cache_key(["a", "bc"])
    assert cache_key(["ab", ""]) != cache_key(["ab"])


def test_options_name_the_definitions_in_one_order():
    ours = compile_options("sm_75", {"ROWS": 4, "ACTIVATION": "half"})
    assert ours == compile_options("sm_75", {"ACTIVATION": "half", "ROWS": 4})
    assert ours[0] == "--gpu-architecture=sm_75"
    assert ours[-2:] == ("-DACTIVATION=half", "-DROWS=4")
    assert not any("fast" in option for option in ours)


def test_an_invalid_source_is_refused_with_the_log_and_the_options(cache_home):
    with pytest.raises(KernelCompileError) as caught:
        compile_cubin("__global__ void broken() { missing(); }", "broken.cu", "sm_80", {"ROWS": 1})
    error = caught.value
    assert isinstance(error, MartletError)
    assert str(error).count("\n") == 0
    assert "broken.cu(1): error" in str(error)
    assert "missing" in error.log
    assert error.options == compile_options("sm_80", {"ROWS": 1})
    assert error.__notes__ == [error.log]
    assert not cache_home.exists()


def test_a_card_that_the_compiler_dropped_needs_an_older_torch():
    with pytest.raises(KernelCompileError, match=r"sm_35 .*sm_50.*torch built for CUDA 12\.6"):
        find_nvrtc("sm_35")


def test_a_card_that_the_compiler_does_not_know_yet_needs_a_newer_torch():
    with pytest.raises(KernelCompileError, match=r"sm_990 .*the newest CUDA build of torch"):
        find_nvrtc("sm_990")


def test_a_machine_without_the_library_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(compiler, "_installed", lambda: iter(()))
    find_nvrtc.cache_clear()
    try:
        with pytest.raises(KernelCompileError, match="install a CUDA build of torch"):
            find_nvrtc("sm_90")
    finally:
        find_nvrtc.cache_clear()


def test_the_library_is_found_in_the_packages_around_torch():
    paths = list(compiler._packaged())
    assert any(path.match("nvidia/*/lib/libnvrtc.so.*") for path in paths)
    assert not any("builtins" in path.name or ".alt." in path.name for path in paths)


def test_a_file_that_is_no_library_is_passed_over(tmp_path, monkeypatch):
    broken = tmp_path / "libnvrtc.so.12"
    broken.write_text("not a library")
    shutil.copymode(next(compiler._packaged()), broken)
    good = list(compiler._packaged())
    monkeypatch.setattr(compiler, "_packaged", lambda: iter([broken, *good]))
    assert str(broken) not in [nvrtc.path for nvrtc in compiler._installed()]
    assert any(nvrtc.path == str(good[0]) for nvrtc in compiler._installed())
