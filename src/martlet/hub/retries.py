"""When a failed request is made again."""

from __future__ import annotations

import time
from collections.abc import Callable

from martlet.errors import DownloadError

__all__ = ["Retries"]

_LONGEST_WAIT_SECONDS = 60.0


class Retries:
    """Counts failures in a row, and waits longer after each.

    Args:
        tries: how often a request may fail without any progress between.
        first_wait_seconds: the pause after the first failure; doubled after each further one.
        wait: how to wait so many seconds; it may raise to give up.
    """

    def __init__(
        self,
        tries: int,
        first_wait_seconds: float,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._tries = tries
        self._first_wait_seconds = first_wait_seconds
        self._wait = wait
        self._failures = 0

    def advanced(self) -> None:
        """Something came: failures count anew."""
        self._failures = 0

    def failed(self, error: DownloadError) -> None:
        """Wait before the next try.

        Raises:
            DownloadError: ``error`` itself, where a further try is of no use or was one too many.
        """
        self._failures += 1
        if not error.may_pass or self._failures >= self._tries:
            raise error
        seconds = self._first_wait_seconds * 2 ** (self._failures - 1)
        if error.retry_after_seconds is not None:
            seconds = max(seconds, error.retry_after_seconds)
        self._wait(min(seconds, max(_LONGEST_WAIT_SECONDS, error.retry_after_seconds or 0)))
