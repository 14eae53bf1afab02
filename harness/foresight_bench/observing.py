"""Observers: plugins that are told how a run goes on. They may fail, and the run goes on. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from threading import Lock
from typing import Any

from tqdm import tqdm

from foresight_bench.cells import Cell
from foresight_bench.plan import Plan, PlannedCell
from foresight_bench.plugins import Plugin


class Observers:
    """The observers among ``plugins``. Any thread may tell them something; they are called one at a time.

    What one raises, ``SystemExit`` included, is a warning on standard error, once for each plugin; it is told of what
    comes later all the same. What one prints goes to standard error: standard output is the command's.
    """

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self._plugins = tuple(plugin for plugin in plugins if plugin.observers)
        self._warned: set[str] = set()
        self._lock = Lock()

    def run_started(self, plan: Plan, missing: frozenset[str]) -> None:
        """Say what a run is about to do: compute the cells ``missing`` of ``plan``."""

        def facts() -> Mapping[str, Any]:
            cells = {cell.id: {**_planned(cell), "reused": cell.id not in missing} for cell in plan.cells}
            return {"plan": {"suite": plan.suite, "cohort": plan.cohort, "cells": list(cells.values())}}

        self._tell("foresight_run_started", facts)

    def run_finished(self, cells: Callable[[], Sequence[Cell]]) -> None:
        """Say that a run has ended, and what ``cells`` there are."""
        self._tell("foresight_run_finished", lambda: {"cells": [cell.model_dump(mode="json") for cell in cells()]})

    def cell_started(self, cell: PlannedCell) -> None:
        """Say that ``cell`` is worked on."""
        self._tell("foresight_cell_started", lambda: _planned(cell))

    def cell_finished(self, cell: Callable[[], Cell | None]) -> None:
        """Say that ``cell`` has ended; nothing if its file cannot be read."""

        def facts() -> Mapping[str, Any] | None:
            found = cell()
            return None if found is None else {"cell": found.model_dump(mode="json")}

        self._tell("foresight_cell_finished", facts)

    def _tell(self, hook: str, facts: Callable[[], Mapping[str, Any] | None]) -> None:
        """Call ``hook`` of every observer that has it, each with facts of its own."""
        for plugin in self._plugins:
            for call in (call for name, call in plugin.observers if name == hook):
                told = facts()
                if told is not None:
                    with self._lock, redirect_stdout(sys.stderr):
                        self._call(plugin.name, hook, call, told)

    def _call(self, plugin: str, hook: str, call: Callable[..., Any], facts: Mapping[str, Any]) -> None:
        try:
            call(**facts)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if plugin not in self._warned:
                self._warned.add(plugin)
                # Around the progress bar, not through it.
                tqdm.write(f"Observer {plugin} failed in {hook} ({_said(error)}); the run goes on.", file=sys.stderr)


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception:  # an exception whose text cannot be had
        return type(error).__name__


def _planned(cell: PlannedCell) -> dict[str, Any]:
    return {"id": cell.id, "identity": cell.identity.model_dump(mode="json")}
