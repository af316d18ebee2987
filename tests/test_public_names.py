import importlib
import inspect
import subprocess
import sys

import pytest

import martlet
from martlet import errors


def test_all_names_exist_and_stand_in_order():
    assert martlet.__all__ == sorted(martlet.__all__)
    for name in martlet.__all__:
        assert getattr(martlet, name) is not None


def test_every_error_is_public():
    classes = {
        n for n, c in vars(errors).items() if inspect.isclass(c) and c.__module__ == errors.__name__
    }
    assert classes == set(errors.__all__)
    assert classes <= set(martlet.__all__)


def test_every_lazy_name_is_the_one_of_its_module():
    for name, module in martlet._MODULES.items():
        assert getattr(martlet, name) is getattr(importlib.import_module(module), name)


def test_other_names_are_attribute_errors_and_dir_lists_the_public_ones():
    with pytest.raises(AttributeError, match="laod"):
        martlet.laod  # noqa: B018
    assert set(martlet.__all__) <= set(dir(martlet))


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, martlet; martlet.UsageError; "
        "heavy = {'torch', 'numpy', 'sentencepiece', 'jieba', 'tokenizers', 'psutil'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"
