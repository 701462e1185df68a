"""What the exported pair answers to labelled clips: the raw material of every figure.

Clips are decoded again and go through the exported files (`release/runtime.py`), front end and quantisation included:
what is measured is what is shipped. Clips that cannot be decoded, or are not there any more, are named and left out.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twophase.audio import sources
from twophase.audio.dataset import Clip
from twophase.audio.decode import BadClip, decode
from twophase.audio.frontend import FRONT_END, Floats, FrontEnd
from twophase.audio.windows import audible, cut
from twophase.files import replacing
from twophase.release.runtime import Classifier, Gate
from twophase.training.conditions import Field

Report = Callable[[int], object]
"""Called with the number of clips that were just finished."""


@dataclass(frozen=True)
class Answers:
    """Both models' answers to n clips. `names` are the classifier's outputs: the wanted labels, then none of these."""

    clips: tuple[Clip, ...]
    names: tuple[str, ...]
    gate: Floats
    """The gate's clip scores (logits), [n]."""
    probabilities: Floats
    """The classifier's answers, [n, len(names)], each summing to 1."""
    bytes: NDArray[np.int64]
    """Size of each clip's file, [n]."""
    bad: tuple[tuple[str, str], ...] = ()
    windows: tuple[Floats, ...] = ()
    """The gate's logits of each clip's audible windows, n of [windows]; files do not keep them."""

    @property
    def truth(self) -> NDArray[np.int64]:
        """Index into `names` of the right answer, [n]; the last one for clips that are not wanted."""
        index = {name: i for i, name in enumerate(self.names[:-1])}
        return np.array([index.get(c.label, len(self.names) - 1) for c in self.clips], np.int64)

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Which clips the gate should let through, [n]."""
        return self.truth < len(self.names) - 1

    def of(self, split: str) -> "Answers":
        """The answers to the clips of one split."""
        chosen = [i for i, c in enumerate(self.clips) if c.split == split]
        return self.at(np.array(chosen, np.int64))

    def at(self, index: NDArray[np.int64]) -> "Answers":
        """The answers at some positions."""
        clips = tuple(self.clips[i] for i in index)
        windows = tuple(self.windows[i] for i in index) if self.windows else ()
        return Answers(
            clips, self.names, self.gate[index], self.probabilities[index], self.bytes[index], self.bad, windows
        )


def ask(
    gate: bytes | Path,
    classifier: bytes | Path,
    names: Sequence[str],
    clips: Sequence[Clip],
    report: Report = lambda n: None,
    condition: str = "clean",
    front_end: FrontEnd = FRONT_END,
    backgrounds: Sequence[Clip] | None = None,
) -> Answers:
    """Ask both exported models about every clip, as heard under a condition (see conditions.py), on all cores.

    `backgrounds` are clips of which the unwanted ones are mixed in where the condition says so, by default `clips`.
    What has nothing to be mixed with is left out: no figure under that condition rests on it. `front_end` is the one
    that the models were made for. A clip's gate score is the mean logit of its audible windows, as in
    `runtime.Gate.clip_score`. Raises `sources.Unreachable` when a clip cannot be read now and may be later.
    """
    local = threading.local()
    heard = Field(condition, clips if backgrounds is None else backgrounds, names[:-1])

    def answer(clip: Clip) -> tuple[Floats, Floats, int] | str | None:
        if not hasattr(local, "pair"):
            local.pair = Gate(gate), Classifier(classifier)
        try:
            data = sources.read(clip.path)
            pcm = heard(clip, decode(data, clip.name))
        except BadClip as error:
            return error.reason
        except sources.Unreachable as error:
            if not error.gone:  # figures on what is left would be kept for good
                raise
            return error.reason
        if pcm is None:
            return None
        windows = cut(pcm, front_end)
        windows = windows[audible(windows)]
        named = local.pair[1].image_probabilities(front_end.images(windows))
        return local.pair[0].scores(windows), named, len(data)

    good: list[tuple[Clip, Floats, Floats, int]] = []
    bad: list[tuple[str, str]] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for clip, found in zip(clips, pool.map(answer, clips), strict=True):
            report(1)
            if isinstance(found, str):
                bad.append((clip.name, found))
            elif found is not None:
                good.append((clip, *found))
    return Answers(
        tuple(c for c, _, _, _ in good),
        tuple(names),
        np.array([float(g.mean()) for _, g, _, _ in good], np.float32),
        np.array([p for _, _, p, _ in good], np.float32).reshape(len(good), len(names)),
        np.array([n for _, _, _, n in good], np.int64),
        tuple(bad),
        tuple(g for _, g, _, _ in good),
    )


def write(path: Path, answers: Answers) -> None:
    """Write answers as JSON lines, the names first."""
    with replacing(path, "w") as file:
        file.write(json.dumps({"names": answers.names, "bad": answers.bad}) + "\n")
        file.writelines(json.dumps(line) + "\n" for line in _lines(answers))


def read(path: Path) -> Answers:
    """Read what `write` wrote."""
    with path.open(encoding="utf-8") as file:
        head = json.loads(next(file))
        lines = [json.loads(line) for line in file]
    return Answers(
        tuple(Clip(**line["clip"]) for line in lines),
        tuple(head["names"]),
        np.array([line["gate"] for line in lines], np.float32),
        np.array([line["probabilities"] for line in lines], np.float32).reshape(len(lines), len(head["names"])),
        np.array([line["bytes"] for line in lines], np.int64),
        tuple((n, r) for n, r in head["bad"]),
    )


def _lines(answers: Answers) -> Iterator[dict[str, object]]:
    for i, clip in enumerate(answers.clips):
        yield {
            "clip": {k: getattr(clip, k) for k in Clip.__slots__},
            "gate": float(answers.gate[i]),
            "probabilities": [float(p) for p in answers.probabilities[i]],
            "bytes": int(answers.bytes[i]),
        }
