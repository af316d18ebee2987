from martlet.models.config import _ARCHITECTURES
from martlet.models.family import TASKS_OF_FAMILY, families_for

PUBLISHED = {"cpm1", "cpm2", "eva"}  # told apart from other models of their architecture


def test_every_architecture_has_a_task() -> None:
    # An mT5 is stored as a T5.
    assert set(TASKS_OF_FAMILY) == set(_ARCHITECTURES) - {"mt5"} | PUBLISHED


def test_a_task_names_its_families() -> None:
    assert families_for("fill") == ["cpm2", "t5"]
    assert "gptj" in families_for("write")
