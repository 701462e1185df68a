"""Where an interrupted training stands, kept beside its output: a machine in a cloud takes its disk with it.

    OUTPUT.fits/KEY/   what `twophase.training.fit` keeps of a fit, half a minute old at most; progress.json last

The first worker writes there, every worker goes on from there, and it is gone when the training has ended well. A crash
at any moment leaves a state that can be gone on from, the newest or the one before.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import link_or_copy

if TYPE_CHECKING:
    from kfp.dsl import Artifact

Progress = Callable[[int, int, dict[str, float]], object]
"""`twophase.training.fit.Progress`, which is called when an epoch is kept."""

KEPT = "progress.json"


@contextmanager
def going_on(
    workdir: Path, output: "Artifact", first: bool, progress: Progress, every_s: float = 30.0
) -> Iterator[Progress]:
    """Bring an interrupted training's state into `workdir`; the `Progress` given keeps what comes of it.

    `first`: whether this is the first worker.
    """
    fits, beside = workdir / "fits", Path(f"{output.path}.fits")
    for kept in beside.glob(f"*/{KEPT}"):
        if not (fits / kept.parent.name / KEPT).exists():
            _copy_state(kept.parent, fits / kept.parent.name)
    began, last = time.time(), time.monotonic()

    def keep(done: int, planned: int, logs: dict[str, float]) -> Any:
        nonlocal last
        if first and time.monotonic() - last >= every_s:
            for kept in fits.glob(f"*/{KEPT}"):
                if kept.stat().st_mtime >= began:
                    _copy_state(kept.parent, beside / kept.parent.name)
            last = time.monotonic()
        return progress(done, planned, logs)

    yield keep
    if first:
        shutil.rmtree(beside, ignore_errors=True)


def _copy_state(state: Path, place: Path) -> None:
    """An epoch counts when `progress.json` says so, so that comes after the weights, and before old ones go."""
    history = (state / KEPT).read_bytes()
    if (place / KEPT).exists() and (place / KEPT).read_bytes() == history:
        return
    place.mkdir(parents=True, exist_ok=True)
    weights = [path.name for path in state.glob("*.npz")]
    for name in weights:
        link_or_copy(state / name, place / name)
    aside = place / f".{KEPT}"
    aside.write_bytes(history)
    aside.replace(place / KEPT)
    for old in place.glob("*.npz"):
        if old.name not in weights:
            old.unlink()
