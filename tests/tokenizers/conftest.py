import lzma
from importlib import resources
from pathlib import Path

import pytest

from martlet.tokenizers.cpm import CPM1Tokenizer, CPM2BilingualTokenizer, CPM2Tokenizer
from martlet.tokenizers.eva import EVATokenizer

ZOO = Path(str(resources.files("martlet"))) / "zoo"
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def zoo() -> Path:
    return ZOO


@pytest.fixture(scope="session")
def bilingual_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpm2-bilingual") / "vocab.txt"
    path.write_bytes(lzma.decompress((GOLDEN / "cpm2-bilingual-vocab.txt.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def cpm1() -> CPM1Tokenizer:
    return CPM1Tokenizer(ZOO / "cpm1-mini" / "chinese_vocab.model")


@pytest.fixture(scope="session")
def cpm2() -> CPM2Tokenizer:
    return CPM2Tokenizer(ZOO / "cpm2-mini" / "vocab.txt")


@pytest.fixture(scope="session")
def bilingual(bilingual_vocabulary: Path) -> CPM2BilingualTokenizer:
    return CPM2BilingualTokenizer(bilingual_vocabulary)


@pytest.fixture(scope="session")
def eva() -> EVATokenizer:
    return EVATokenizer(ZOO / "eva-mini" / "vocab.txt")
