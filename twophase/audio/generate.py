"""Where the clips of a run come from: the user's data, or the synthesiser where none is given.

WORKDIR/synth/<per label>-<seed>/   rendered clips; a data folder like any other, so it can be listened to
WORKDIR/digests.npy, fetched/       what is known of their content (fetched.py): only what is new is read again
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from twophase.audio.dataset import Dataset, read_source
from twophase.audio.forget import without_forgotten

Progress = Callable[[int, int], object]
"""Called with (finished, planned) labels."""


def generate(
    data: str, wanted: Sequence[str] | None, workdir: Path, per_label: int, seed: int, progress: Progress
) -> Dataset:
    """The dataset at `data`, or `per_label` rendered clips of every label of the synthesiser where it is empty."""
    if data:
        return without_forgotten(read_source(data, wanted, workdir), workdir)
    from twophase.audio import synth

    folder = workdir / "synth" / f"{per_label}-{seed}"
    if not (folder / "labels.csv").is_file():
        labels = synth.LABELS + synth.OTHER_LABELS
        done = itertools.count(1)

        def report(_: int) -> None:
            progress(next(done), len(labels))

        synth.write_clips(folder, per_label, seed, labels, report)
    return without_forgotten(read_source(folder, wanted, workdir), workdir)
