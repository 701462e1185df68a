"""Running the repository's `benchmarks/`: scripts with `run() -> dict`, some of which ask for a release to measure."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from twophase.errors import TwoPhaseError, UsageError

FOLDER = Path(__file__).parents[1] / "benchmarks"


def names() -> list[str]:
    """The benchmarks that there are."""
    found = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    if not found:
        raise TwoPhaseError(
            f"{FOLDER}: has no benchmarks; they are part of the repository, not of the installed package"
        )
    return found


def run(name: str, release: Path | None, workdir: Path) -> dict[str, Any]:
    """One benchmark's result: `benchmark`, `machine`, `rows`, `goals`."""
    if name not in names():
        raise UsageError(f"{name}: is no benchmark; {', '.join(names())} are")
    measure = _load(name).run
    if "release" not in inspect.signature(measure).parameters:
        return dict(measure())
    return dict(measure(release or _newest(workdir / "releases")))


def show(result: dict[str, Any]) -> None:
    """A result for people, with its JSON last."""
    _load("_report").emit(result)


def _load(name: str) -> Any:
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


def _newest(releases: Path) -> Path:
    found = sorted(releases.glob("r-*"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise TwoPhaseError(f"{releases}: has no release to measure; make one with `twophase run`, or give --release")
    return found[-1]
