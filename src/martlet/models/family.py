"""What the published models were trained to do, by family."""

from __future__ import annotations

from typing import Literal

__all__ = ["TASKS_OF_FAMILY", "Task", "tasks_of", "who_can"]

Task = Literal["fill", "write", "chat"]

TASKS_OF_FAMILY: dict[str, tuple[Task, ...]] = {
    "bloom": ("write",),
    "cpm1": ("write",),
    "cpm2": ("fill", "write"),
    "eva": ("chat",),
    "gemma": ("write",),
    "gemma2": ("write",),
    "gemma3": ("write",),
    "gemma3_text": ("write",),
    "glm": ("write",),
    "glm4": ("write",),
    "gpt2": ("write",),
    "gpt_neox": ("write",),
    "gptj": ("write",),
    "llama": ("write",),
    "minicpm": ("write",),
    "minicpm3": ("write",),
    "mistral": ("write",),
    "phi3": ("write",),
    "qwen2": ("write",),
    "qwen3": ("write",),
    "t5": ("fill",),
}
"""The first task of a family is what it is best at."""


def tasks_of(family: str, *, has_template: bool) -> tuple[Task, ...]:
    """What a model can be asked for, the best first; none for a family that is not known.

    A model of any family that came with a chat template was trained to chat.
    """
    tasks = TASKS_OF_FAMILY.get(family, ())
    return ("chat", *tasks) if has_template and tasks and "chat" not in tasks else tasks


def who_can(task: Task) -> str:
    """The models that can do a task, as a message names them: by the fewer families."""
    able = [family for family, tasks in TASKS_OF_FAMILY.items() if task in tasks]
    unable = [family for family in TASKS_OF_FAMILY if family not in able]
    if len(unable) < len(able):
        return f"models of all families but {' and '.join(unable)}"
    named = f"models of the family {' or '.join(able)}"
    return f"models with a chat template and {named}" if task == "chat" else named
