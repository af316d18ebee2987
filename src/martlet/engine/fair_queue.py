"""Who comes next: clients in turn, each with its own in the order in which they came."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue in which nobody waits longer because another has put in more.

    While k clients wait, each is served once in every k pops. A client that comes new, or again
    after its last item went, is served after all that wait.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()  # no deque is empty

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, client: str, item: T) -> None:
        """Put an item behind the others of its client."""
        self._waiting.setdefault(client, deque()).append(item)

    def pop(self) -> T | None:
        """Take the item that comes next; None where none is left."""
        if not self._waiting:
            return None
        client, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[client] = items  # behind the other clients
        return item

    def remove(self, is_unwanted: Callable[[T], bool]) -> list[T]:
        """Take out the items of which this is true; all others keep their places."""
        removed: list[T] = []
        for client, items in list(self._waiting.items()):
            kept: deque[T] = deque()
            for item in items:
                (removed if is_unwanted(item) else kept).append(item)
            if kept:
                self._waiting[client] = kept
            else:
                del self._waiting[client]
        return removed
