"""Where training starts from: the two networks, taught to tell rendered sounds apart, less their last layers.

    python -m twophase.training.pretrain FluidR3_GM.sf2 sf_GMbank.sf2

        twophase/training/start-{gate,small,large}.npz    what it writes
        twophase-work/pretrain/KEY/                       rendered clips; KEY is a digest of all that made them
        twophase-work/pretrain/start-NAME-KEY/            where a fit stands (fit.py), by images, recipe and code

The sounds come from `audio/synth.py`: `CLIPS` of each label that it can render, the programs of General MIDI among
them, from seed `SEED`, which no other part of the project uses. Telling 119 timbres apart at any pitch is what carries
over to notes that training never hears; telling them apart whoever plays them, to instruments that nobody rendered. So
each clip is played by the embedded soundfont or one of `SOUNDFONTS`, which are told by their content: without them
nothing is written. They are FluidR3_GM.sf2 (Frank Wen, MIT; Debian's fluid-soundfont-gm 3.1) and sf_GMbank.sf2 (public
domain; Debian's csound-soundfont 6.18); as far as their authors say, neither holds anything of the recordings that
docs/models.md measures on. Half of the sounds are learned with another in the background, half
through a narrow channel.

The files hold float16 weights (networks.keep_start); the same seed and soundfonts on the same machine give the same
files. Takes half an hour on two cores; interrupted, it goes on where it was, and makes again what has changed.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from twophase.audio import synth
from twophase.audio.dataset import Dataset, read_source
from twophase.audio.images import ImageSet, make_all
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import code_digest, digest, digest_of
from twophase.training import networks
from twophase.training.augment import Augment
from twophase.training.fit import Recipe, prepare
from twophase.training.train import fit_rows, key_of

SOUNDFONTS = {
    "FluidR3_GM.sf2": "74594e8f4250680adf590507a306655a299935343583256f3b722c48a1bc1cb0",
    "sf_GMbank.sf2": "9f39fc53bd3a1a69f13cb486838944eded358b3b6e8afbd6c1c2c33675b2034b",
}
"""What plays beside the embedded soundfont, in this order: sha256 of each."""

CLIPS = 300
SEED = 20_260_000

RECIPE = Recipe(
    steps=12_000,
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


def pretrain(name: str, images: ImageSet, recipe: Recipe, state: Path, file: Path) -> None:
    """Teach the gate or a backbone of the classifier all labels of an image set, and keep what it learned in `file`."""
    prepare(recipe.seed)
    outputs = len(images.labels)
    network = networks.gate(outputs, "random") if name == "gate" else networks.classifier(outputs, name, "random")

    def say(done: int, planned: int, logs: dict[str, float]) -> None:
        sys.stderr.write(f"{name}: epoch {done}/{planned} loss {logs['loss']:.3f}, validation {logs['val_loss']:.3f}\n")

    fit_rows(network, images, images.label_of_row, recipe, state, say)
    networks.keep_start(network, file)


def chosen(files: Sequence[Path]) -> list[Path]:
    """The files that are `SOUNDFONTS`, in their order. Raises `UsageError` when one is missing, or another is there."""
    by_content = {digest(file): file for file in files if file.is_file()}
    if set(by_content) != set(SOUNDFONTS.values()) or len(files) != len(SOUNDFONTS):
        raise UsageError(
            f"{', '.join(map(str, files)) or 'no soundfont'}: the starts that are checked in are made with "
            + " and ".join(f"{name} (sha256 {sha})" for name, sha in SOUNDFONTS.items())
            + "; give these files and no other"
        )
    return [by_content[sha] for sha in SOUNDFONTS.values()]


def clips_key(soundfonts: Sequence[Path]) -> str:
    """Names the rendered clips by all that they depend on."""
    code = code_digest(
        *(f"twophase.audio.{m}" for m in ("synth", "soundfont", "soundfont_file", "everyday", "effects"))
    )
    return digest_of([CLIPS, SEED, [digest(file) for file in soundfonts], code])[:16]


def render(folder: Path, soundfonts: Sequence[Path]) -> Dataset:
    """The rendered clips of all labels, in two folders that are made at the same time."""
    parts = [folder / "0", folder / "1"]
    missing = [k for k, part in enumerate(parts) if not part.is_dir()]
    with ProcessPoolExecutor(len(parts), get_context("spawn")) as pool:
        for done in [
            pool.submit(synth.write_clips, parts[k], CLIPS, SEED, synth.ALL_LABELS[k::2], None, soundfonts)
            for k in missing
        ]:
            done.result()
    first, second = (read_source(part) for part in parts)
    return Dataset([*first.clips, *second.clips], tuple(sorted({*first.wanted, *second.wanted})))


def main() -> None:
    """Render, then pretrain."""
    workdir, soundfonts = Path("twophase-work/pretrain"), chosen([Path(name) for name in sys.argv[1:]])
    found = render(workdir / clips_key(soundfonts), soundfonts)
    images = make_all(workdir, found, "fail", lambda done, planned: None)
    for name, file in networks.STARTS.items():
        pretrain(name, images, RECIPE, workdir / key_of(f"start-{name}", images, RECIPE, ()), file)


if __name__ == "__main__":
    try:
        main()
    except TwoPhaseError as error:
        sys.exit(f"pretrain: {error}")
