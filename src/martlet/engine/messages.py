"""What messages a chat template is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from martlet.errors import UsageError

__all__ = ["checked_messages"]

_ROLES = ("system", "user", "assistant")
_NEEDED = frozenset({"role", "content"})
# What an assistant thought, for templates that show it again; OpenAI's clients send it so.
_THOUGHTS = "reasoning_content"


def checked_messages(messages: object) -> list[dict[str, str]]:
    """Messages that a template can be given, the last of them the user's.

    Raises:
        UsageError: they are no list of messages, or one has a field or role that is not known.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise UsageError(
            "messages must be a list of at least one message, "
            'each {"role": "system", "user" or "assistant", "content": text}'
        )
    checked = [_checked(number, message) for number, message in enumerate(messages, start=1)]
    if checked[-1]["role"] != "user":
        raise UsageError(
            f"the last message has the role {checked[-1]['role']}; end with one from the user"
        )
    return checked


def _checked(number: int, message: object) -> dict[str, str]:
    where = f"message {number}"
    if not isinstance(message, Mapping) or not set(message) >= _NEEDED:
        fields = sorted(map(str, message)) if isinstance(message, Mapping) else repr(message)
        raise UsageError(f"{where} must have the fields role and content, got {fields!s:.200}")
    role = message["role"]
    if role in ("tool", "function"):
        raise UsageError(f"{where} has the role {role}, but tools are not supported; leave it out")
    if role not in _ROLES:
        raise UsageError(f"{where} has the role {role!r:.40}; it must be {' or '.join(_ROLES)}")
    known = _NEEDED | {_THOUGHTS} if role == "assistant" else _NEEDED
    if odd := sorted(map(str, set(message) - known)):
        raise UsageError(
            f"{where} has the field {odd[0]!r:.40}; known for {role} are {', '.join(sorted(known))}"
        )
    for field in sorted(set(message)):
        if not isinstance(message[field], str):
            raise UsageError(f"the {field} of {where} is not a string; it must be text")
    return {field: str(message[field]) for field in message}
