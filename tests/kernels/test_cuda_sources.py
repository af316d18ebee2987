"""Every CUDA source compiles for every supported card, as Python uses it, on any machine."""

import re
from importlib.resources import files

import pytest

from martlet.errors import KernelCompileError
from martlet.kernels.cuda.compiler import compile_options, find_nvrtc, read_source
from martlet.kernels.cuda.variants import ARCHITECTURES, VARIANTS

SOURCES = sorted(
    entry.name.removesuffix(".cu")
    for entry in files("martlet.kernels.cuda").iterdir()
    if entry.name.endswith(".cu")
)

# The oldest card and the one that our figures are of in every run; the others where there is time.
QUICK = ("sm_61", "sm_90a")
CARDS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES
]

# Of a thread. A few registers over a limit that occupancy asks for cost less than a block fewer
# would; an array that went to device memory is hundreds of bytes.
MAX_SPILL_BYTES = 128


def test_every_source_has_a_row_of_variants() -> None:
    assert sorted(VARIANTS) == SOURCES
    assert all(len(variants) > 0 for variants in VARIANTS.values())


# A source and a card a case, so that workers share them evenly.
@pytest.mark.parametrize("architecture", CARDS)
@pytest.mark.parametrize("name", SOURCES)
def test_a_source_compiles_and_keeps_its_registers(name: str, architecture: str) -> None:
    source, nvrtc = read_source(name), find_nvrtc(architecture)
    for defines in VARIANTS[name]:
        # The assembler's report; without the cache, which would hide a compiler's refusal.
        options = (*compile_options(architecture, defines), "--ptxas-options=-v")
        try:
            cubin, log = nvrtc.compile(source, f"{name}.cu", options)
        except KernelCompileError as error:
            pytest.fail(f"{error}\n{error.log}")
        assert cubin.startswith(b"\x7fELF")
        spills = [int(count) for count in re.findall(r"(\d+) bytes spill stores", log)]
        assert spills or "Compiling entry function" not in log, "the report's wording changed"
        assert max(spills, default=0) <= MAX_SPILL_BYTES, f"{defines}\n{log}"
