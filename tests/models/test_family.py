from martlet.models.config import _ARCHITECTURES
from martlet.models.family import TASKS_OF_FAMILY, who_can

PUBLISHED = {"cpm1", "cpm2", "eva"}  # told apart from other models of their architecture


def test_every_architecture_has_a_task() -> None:
    # An mT5 is stored as a T5.
    assert set(TASKS_OF_FAMILY) == set(_ARCHITECTURES) - {"mt5"} | PUBLISHED


def test_a_task_names_its_families() -> None:
    assert who_can("fill") == "models of the family cpm2 or t5"
    assert who_can("write") == "models of all families but eva and t5"
    assert who_can("chat") == "models with a chat template and models of the family eva"
