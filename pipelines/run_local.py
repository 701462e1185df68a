"""Running the compiled spec on this machine, through Kubeflow's own local runner.

The spec that is run is the checked-in `compiled/two_phase.local.yaml`, the same that is submitted; there is no second
code path. Each step is a process of its own. What steps print goes to `WORKDIR/run.log`; the lines in which they say
where they stand (twophase/progress.py) come back to the caller as events.

    WORKDIR/pipeline/   what the runner keeps of each run: inputs and outputs of steps
    WORKDIR/run.log     everything that the last run printed
"""

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from components.step import HELD
from pipelines.compile import read_spec
from twophase.errors import TwoPhaseError
from twophase.files import disk_error, locked
from twophase.progress import Event, parse


class RunFailed(TwoPhaseError):
    """A step failed; the message is the step's own."""


def run_local(
    workdir: Path, arguments: dict[str, Any], on_event: Callable[[Event], object] = lambda event: None
) -> None:
    """Run `two_phase.local` with these arguments; raise `RunFailed` with the failed step's words.

    One run a workdir at a time: a second is refused and told who is at it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir, "this workdir"), (workdir / "run.log").open("w", encoding="utf-8") as log:
        events = _Events(log, on_event)
        with _environment_of_steps(workdir), contextlib.redirect_stdout(events), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from kfp import components, local

            local.init(
                local.SubprocessRunner(use_venv=False), pipeline_root=str(workdir / "pipeline"), raise_on_error=True
            )
            pipeline = components.load_component_from_text(json.dumps(read_spec("two_phase.local")))
            try:
                pipeline(workdir=str(workdir), **arguments)
            except OSError as error:
                raise disk_error(workdir, error) from error
            except RuntimeError as error:
                failed = events.failed
                if failed is None:
                    raise RunFailed(f"a step ended without a word; {workdir / 'run.log'} has its output") from error
                raised = RunFailed(f"{failed.step}: {failed.error}")
                raised.exit_code = failed.exit_code
                raise raised from None


class _Events(io.TextIOBase):
    """Standard output of a run: everything to the log, events to the caller."""

    def __init__(self, log: TextIO, on_event: Callable[[Event], object]) -> None:
        self._log, self._on_event, self._line = log, on_event, ""
        self.failed: Event | None = None

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):  # a full disk stops the step that needs it, and that step says so
            self._log.write(text)
            self._log.flush()
        *lines, self._line = (self._line + text).split("\n")
        for event in filter(None, map(parse, lines)):
            if event.error:
                self.failed = event
            self._on_event(event)
        return len(text)


@contextlib.contextmanager
def _environment_of_steps(workdir: Path) -> Iterator[None]:
    """Steps are quiet, and know that the workdir is held for them."""
    wanted = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", HELD: str(workdir)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    sys.stdout.flush()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
