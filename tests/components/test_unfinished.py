"""What is kept of an interrupted training beside its output: gone on from by all, written by the first, whole."""

import json
from contextlib import suppress
from pathlib import Path

from kfp.dsl import Model

from components.unfinished import KEPT, going_on


def keep_epoch(state: Path, epoch: int) -> None:
    """What a fit does at the end of an epoch."""
    state.mkdir(parents=True, exist_ok=True)
    (state / f"{epoch}.npz").write_bytes(b"%d" % epoch)
    (state / KEPT).write_text(json.dumps({"val_loss": [0.0] * epoch}))
    for old in state.glob("*.npz"):
        if old.name != f"{epoch}.npz":
            old.unlink()


def interrupted(folder: Path, first: bool = True) -> None:
    """A training that is ended after its second epoch."""
    with suppress(KeyboardInterrupt), going_on(folder / "w", model(folder), first, lambda *_: None, 0) as keep:
        for epoch in (1, 2):
            keep_epoch(folder / "w/fits/key", epoch)
            keep(epoch, 9, {})
        raise KeyboardInterrupt


def model(folder: Path) -> Model:
    return Model(uri=str(folder / "model"))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))


def test_every_worker_goes_on_where_the_first_was(tmp_path: Path) -> None:
    interrupted(tmp_path)
    for first in (False, True):
        with going_on(tmp_path / f"new-{first}", model(tmp_path), first, lambda *_: None):
            state = tmp_path / f"new-{first}" / "fits/key"
            assert files(state) == ["2.npz", KEPT]
            assert len(json.loads((state / KEPT).read_text())["val_loss"]) == 2
    assert not (tmp_path / "model.fits").exists(), "it ended well"


def test_only_the_first_worker_writes(tmp_path: Path) -> None:
    interrupted(tmp_path, first=False)
    assert not (tmp_path / "model.fits").exists()


def test_what_is_further_on_in_the_workdir_is_left_alone(tmp_path: Path) -> None:
    interrupted(tmp_path)
    keep_epoch(tmp_path / "w/fits/key", 5)
    with going_on(tmp_path / "w", model(tmp_path), True, lambda *_: None):
        assert files(tmp_path / "w/fits/key") == ["5.npz", KEPT]


def test_progress_goes_on_to_who_asked_for_it(tmp_path: Path) -> None:
    seen: list[int] = []
    with going_on(tmp_path / "w", model(tmp_path), True, lambda done, *_: seen.append(done)) as keep:
        keep(1, 9, {})
        keep(2, 9, {})
    assert seen == [1, 2]
