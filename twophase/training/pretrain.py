"""Where training starts from: the two networks, taught to tell rendered sounds apart, less their last layers.

    python -m twophase.training.pretrain          writes twophase/training/start-{gate,classifier}.npz

The sounds come from `audio/synth.py`: `CLIPS` of each label that it can render, the programs of General MIDI among
them, from seed `SEED`, which no other part of the project uses. Telling 119 timbres apart at any pitch is what carries
over to notes that training never hears. Half of the sounds are learned with another in the background, half through a
narrow channel. The files hold float16 weights (networks.keep_start) and are checked in; the same seed on the same
machine gives the same files. Takes a quarter of an hour; interrupted, it goes on where it was, in
`twophase-work/pretrain/`.
"""

import sys
from pathlib import Path

from twophase.audio import synth
from twophase.audio.dataset import read_source
from twophase.audio.images import ImageSet, make_all
from twophase.training import networks
from twophase.training.augment import Augment
from twophase.training.fit import Recipe, prepare
from twophase.training.train import fit_rows

CLIPS = 200
SEED = 20_260_000

RECIPE = Recipe(
    steps=6_000,
    weight_decay=0.02,
    augment=Augment(
        warp_semitones=2.0,
        shift_frames=6,
        background_probability=0.5,
        background_snr_db=(-5.0, 25.0),
        band_limit_probability=0.5,
        time_masks=2,
        time_mask_frames=4,
        freq_masks=2,
        freq_mask_mels=4,
    ),
)


def pretrain(kind: str, images: ImageSet, recipe: Recipe, state: Path, file: Path) -> None:
    """Teach the `gate` or `classifier` network all labels of an image set, and keep what it learned in `file`."""
    prepare(recipe.seed)
    outputs = len(images.labels)
    network = networks.gate(outputs, "random") if kind == "gate" else networks.classifier(outputs, weights="random")

    def say(done: int, planned: int, logs: dict[str, float]) -> None:
        sys.stderr.write(f"{kind}: epoch {done}/{planned} loss {logs['loss']:.3f}, validation {logs['val_loss']:.3f}\n")

    fit_rows(network, images, images.label_of_row, recipe, state, say)
    networks.keep_start(network, file)


def main() -> None:
    """Render, then pretrain."""
    workdir = Path("twophase-work/pretrain")
    if not (workdir / "clips").is_dir():
        synth.write_clips(workdir / "clips", CLIPS, SEED, synth.ALL_LABELS)
    images = make_all(workdir, read_source(workdir / "clips"), "fail", lambda done, planned: None)
    for kind, file in networks.STARTS.items():
        pretrain(kind, images, RECIPE, workdir / f"fit-{kind}", file)


if __name__ == "__main__":
    main()
