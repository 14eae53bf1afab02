"""What is shown while a run goes on: one bar, and a line for each finished cell; nothing unless on a terminal."""

from __future__ import annotations

import sys
from threading import Lock
from types import TracebackType

from tqdm import tqdm

from foresight_bench.jobs import Event


class Progress:
    """The bar of a run. Any thread may show events.

    Args:
        total: units of work in all.
    """

    def __init__(self, total: int) -> None:
        self._left = total
        self._bar = tqdm(
            total=total,
            file=sys.stderr,
            disable=None,  # silent when standard error is not a terminal
            bar_format="{percentage:3.0f}% {bar:30} {elapsed}<{remaining} {desc}",
            dynamic_ncols=True,
            leave=False,
        )
        self._lock = Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, event: Event) -> None:
        """Show what ``event`` says."""
        with self._lock:
            if event.ended and not self._bar.disable:
                tqdm.write(event.text, file=sys.stderr)
            elif event.text:
                self._bar.set_description_str(event.text, refresh=False)
            # A worker that died begins its feature pass anew; the bar stays where it was, and never overflows.
            units = min(event.units, self._left)
            self._left -= units
            self._bar.update(units)
            self._bar.refresh()
