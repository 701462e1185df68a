"""What people see while they wait and when it is done: bars, tables, on standard error unless it is a result."""

import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from twophase.progress import Event

_QUIET_S = 10.0


class Steps:
    """A bar for every step of a run, drawn as its events come in; a line now and then where there is no terminal."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said = ("", 0.0)

    def __enter__(self) -> "Steps":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Draw an event."""
        note = event.error or event.note
        if not self._console.is_terminal:
            step, when = self._said
            if event.error or event.values or event.step != step or time.monotonic() - when > _QUIET_S:
                self._said = (event.step, time.monotonic())
                where = f"{event.done} of {event.total}" if event.total > 1 else ""
                words = ", ".join(filter(None, (where, note))) or "..."
                self._console.print(f"{event.step}: {words}", markup=False, highlight=False, soft_wrap=True)
            return
        if event.step not in self._tasks:
            for task in self._tasks.values():
                self._bars.stop_task(task)
            self._tasks[event.step] = self._bars.add_task(event.step, total=None, note="")
        task = self._tasks[event.step]
        self._bars.update(task, total=event.total or None, completed=event.done, note=note[:80])


def bar(what: str) -> Callable[[int, int], object]:
    """A progress bar that is called with (done, total) and ends by itself; nothing where there is no terminal."""
    progress = Progress(console=Console(file=sys.stderr), transient=True)
    if not progress.console.is_terminal:
        return lambda done, total: None
    task = progress.add_task(what)
    progress.start()

    def at(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)
        if done >= total:
            progress.stop()

    return at


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on standard output."""
    drawn = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    console.print(drawn, soft_wrap=not console.is_terminal)
