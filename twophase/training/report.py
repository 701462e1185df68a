"""The report: one HTML file with the pictures that people look at.

It holds everything that it shows: no script, no link to anything outside (its content security policy forbids both),
so that it can be mailed, archived and opened offline. What comes from data (label and file names) is escaped by
Jinja's autoescape. Figures are the judgement's own; pictures are drawn from the answers, by this module (what is
shown) and `report.html.jinja` (how it looks). Sizes are bounded whatever the dataset's: about 1 MB, at most 3.

The file is written whole or not at all. A clip whose file has gone, or has another content by now, stays in the report
without its sound.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio import pictures, sources
from twophase.audio.dataset import SPLITS, Clip
from twophase.audio.decode import BadClip, decode
from twophase.audio.frontend import SAMPLE_RATE, Floats
from twophase.audio.images import ImageSet
from twophase.files import JSON, digest, read_json, replacing
from twophase.release import manifest
from twophase.release.card import CARD, in_words
from twophase.release.manifest import EXTRA, OperatingPoint
from twophase.training.answers import Answers
from twophase.training.evaluate import calibration_error, right
from twophase.training.judge import Judgement
from twophase.training.operating_point import Rule, costs_of

EXCERPT_S = 3.0
"""Longest sound of a sample clip."""

# What bounds the file's size, whatever the dataset's.
MISTAKES_PER_KIND = 4
RIGHT_ONES = 6
SHEET_IMAGES = 160
SHEET_LABELS = 80
MATRIX_LABELS = 40
CONFUSED = 10
LISTED = 200
CURVE_POINTS = 300
SURFACE_COLUMNS, SURFACE_ROWS = 24, 12

_COST_WORDS = {"miss": "miss", "wrong": "wrong label", "call": "call", "byte": "byte"}


def write(path: Path, images: ImageSet, gate: Path, classifier: Path, judged: Judgement, release: Path) -> None:
    """Write the report on a release to `path`, from the MODEL folders and the judgement that it was exported from.

    Raises `TwoPhaseError` when one of these is not whole, or `path` cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("twophase.training", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, size=size, condition=in_words, count=lambda n: f"{n:,}")
    page = environment.get_template("report.html.jinja").render(_facts(images, gate, classifier, judged, release))
    with replacing(path) as file:
        file.write(page.encode(errors="replace"))  # a file name may hold bytes that are no text


def percent(share: float | None) -> str:
    """A share in words: 100% and 0% mean all and none, never nearly."""
    if share is None:
        return "-"
    text = f"{share:.0%}"
    return f"{min(max(share, 0.001), 0.999):.1%}" if text in ("0%", "100%") and share not in (0.0, 1.0) else text


def size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB" if count >= 1e3 else f"{count} bytes"


@dataclass(frozen=True)
class Plot:
    """Where values lie in an SVG of `width` by `height` user units; `x` and `y` are the ranges of its axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 440
    height: float = 270
    left: float = 40
    right: float = 20
    top: float = 10
    bottom: float = 40

    def px(self, x: float) -> float:
        """Where `x` lies, from the left."""
        return round(self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - self.right), 1)

    def py(self, y: float) -> float:
        """Where `y` lies, from the top."""
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - self.bottom - share * (self.height - self.top - self.bottom), 1)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """A line through points, as the `d` of an SVG path; what is not finite is passed over."""
        return "M" + "L".join(f"{self.px(x)} {self.py(y)}" for x, y in zip(xs, ys, strict=True) if np.isfinite(y))

    def x_ticks(self, about: int = 5) -> list[float]:
        """Round values along the horizontal axis."""
        return _ticks(*self.x, about)

    def y_ticks(self, about: int = 5) -> list[float]:
        """Round values along the vertical axis."""
        return _ticks(*self.y, about)


def _ticks(low: float, high: float, about: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    margin = (high - low) * 1e-6
    found = MaxNLocator(about, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [round(float(v), 9) for v in found if low - margin <= v <= high + margin]


def _facts(images: ImageSet, gate: Path, classifier: Path, judged: Judgement, release: Path) -> dict[str, Any]:
    """All that the template shows."""
    found, point, test = manifest.read(release), judged.point, judged.test
    histories = [
        ("gate", read_json(gate / "history.json", "trained gate")),
        ("classifier", read_json(classifier / "history.json", "trained classifier")),
    ]
    bad = [*images.bad, *judged.test.bad]
    return {
        "release": found,
        "sizes": {name: _size_of(release / EXTRA / f"{name}.tflite") for name in ("gate", "classifier")},
        "metrics": judged.metrics,
        "point": point,
        "counts": _counts(test, point),
        "splits": [(split, sum(c.split == split for c in images.clips)) for split in SPLITS],
        "curve": _curve(judged),
        "scores": _scores(test, point.threshold),
        "saved": _saved(test, judged.metrics, point.threshold),
        "matrix": _matrix(judged.metrics["classifier"]),
        "per_label": _per_label(test, point),
        "reliability": _reliability(test),
        "samples": list(_samples(images, test, point)),
        "excerpt_s": EXCERPT_S,
        "training": [_training(name, history) for name, history in histories],
        "sheet": _sheet(images),
        "hidden_labels": max(0, len(images.labels) - SHEET_LABELS),
        "bad": bad[:LISTED],
        "bad_count": len(bad),
        "lineage": judged.lineage,
        "sweep": [list(rows) for _, rows in groupby(judged.metrics.get("sweep", ()), key=lambda row: row["threshold"])],
        "surface": _surface(judged.validation, point, judged.metrics.get("costs", {})),
        "conditions": judged.metrics.get("conditions", {}),
        "worst": judged.metrics.get("headline", {}).get("pair accuracy"),
        "robustness": judged.metrics.get("robustness", ()),
        "card": CARD,
        "images": images,
    }


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _named(answers: Answers, rejection: float) -> NDArray[np.int64]:
    """What the classifier's answers count as, [n]: none of these where they are less sure than `rejection`."""
    heeded = answers.probabilities.max(axis=1) >= rejection
    return np.where(heeded, answers.probabilities.argmax(axis=1), len(answers.names) - 1)


def _counts(test: Answers, point: OperatingPoint) -> dict[str, int]:
    """What became of the test clips: every clip is counted in exactly one of the last seven."""
    passed, wanted, none = test.gate >= point.threshold, test.wanted, len(test.names) - 1
    named = _named(test, point.rejection)
    masks = {
        "clips": np.ones(len(wanted), bool),
        "wanted": wanted,
        "unwanted": ~wanted,
        "passed": passed,
        "right": right(test, point.threshold, point.rejection),
        "classified": wanted & (test.probabilities.argmax(axis=1) == test.truth),
        "named_right": wanted & passed & (named == test.truth),
        "named_wrong": wanted & passed & (named != test.truth) & (named != none),
        "named_none": wanted & passed & (named == none),
        "missed": wanted & ~passed,
        "stopped": ~wanted & ~passed,
        "caught": ~wanted & passed & (named == none),
        "false_alarms": ~wanted & passed & (named != none),
    }
    return {name: int(mask.sum()) for name, mask in masks.items()}


def _curve(judged: Judgement) -> dict[str, Any]:
    """Recall against the share of clips let through, over all thresholds, on validation and test clips."""
    point = judged.point
    lines = []
    for name, given in (("validation", judged.validation), ("test", judged.test)):
        if not given.wanted.any():
            continue
        order = np.argsort(-given.gate, kind="stable")
        recall = np.cumsum(given.wanted[order]) / given.wanted.sum()
        share = np.arange(1, len(order) + 1) / len(order)
        last = np.append(np.diff(given.gate[order]) != 0, True)  # clips of one score pass together
        recall, share = recall[last], share[last]
        kept = np.unique(np.linspace(0, len(recall) - 1, CURVE_POINTS).astype(np.int64))
        passed = given.gate >= point.threshold
        at = (float(passed.mean()), float(passed[given.wanted].mean()))
        lines.append({"name": name, "x": [0.0, *share[kept].tolist()], "y": [0.0, *recall[kept].tolist()], "at": at})
    low = max(0.0, np.floor(10 * min(line["at"][1] for line in lines) - 2.5) / 10)
    start = max(0.0, np.floor(10 * min(np.interp(low, line["y"], line["x"]) for line in lines)) / 10)
    for line in lines:
        inside = [(x, y) for x, y in zip(line["x"], line["y"], strict=True) if y >= low and x >= start]
        first = float(np.interp(low, line["y"], line["x"]))
        line["x"], line["y"] = [first, *(x for x, _ in inside)], [low, *(y for _, y in inside)]
    return {"lines": lines, "plot": Plot((start, 1.0), (low, 1.0))}


def _surface(validation: Answers, point: OperatingPoint, costs: JSON) -> dict[str, Any] | None:
    """What a validation clip costs by how many are let through and what is rejected; None without costs."""
    if not any(costs.values()):
        return None
    rule, ordered = Rule(**costs), np.sort(validation.gate)[::-1]
    shares = (np.arange(SURFACE_COLUMNS) + 0.5) / SURFACE_COLUMNS
    thresholds = ordered[(shares * len(ordered)).astype(np.int64)].astype(np.float64).tolist()
    rejections = ((np.arange(SURFACE_ROWS) + 0.5) / SURFACE_ROWS).tolist()
    cost = [[float(costs_of(validation, rule, t, r).mean()) for t in thresholds] for r in rejections]
    low, high = min(map(min, cost)), max(map(max, cost))
    cells = [
        {
            "x": j / SURFACE_COLUMNS,
            "y": (i + 1) / SURFACE_ROWS,
            "rejection": rejections[i],
            "passed": float((validation.gate >= thresholds[j]).mean()),
            "recall": float((validation.gate >= thresholds[j])[validation.wanted].mean()),
            "cost": cost[i][j],
            "shade": (cost[i][j] - low) / (high - low) if high > low else 0.0,
        }
        for i in range(SURFACE_ROWS)
        for j in range(SURFACE_COLUMNS)
    ]
    return {
        "plot": Plot((0.0, 1.0), (0.0, 1.0), 440, 290, top=34),
        "size": (1 / SURFACE_COLUMNS, 1 / SURFACE_ROWS),
        "cells": cells,
        "recalls": [(c["x"] + 0.5 / SURFACE_COLUMNS, c["recall"]) for c in cells[1:SURFACE_COLUMNS:5]],
        "at": (point.escalation_rate, point.rejection),
        "here": float(costs_of(validation, rule, point.threshold, point.rejection).mean()),
        "range": (low, high),
        "costs": ", ".join(f"a {word} {costs[name]:g}" for name, word in _COST_WORDS.items() if costs[name]),
    }


def _scores(test: Answers, threshold: float) -> dict[str, Any]:
    """How the gate's scores lie on both sides of the threshold: shares of each kind by bins that meet at it."""
    low, high = (float(f(np.append(test.gate, threshold))) for f in (np.min, np.max))
    width = max((high - low) / 36, 1e-3)
    below, above = int(np.ceil((threshold - low) / width)) + 1, int(np.ceil((high - threshold) / width)) + 1
    edges = threshold + width * np.arange(-below, above + 1)
    kinds = {}
    for name, mask in (("wanted", test.wanted), ("unwanted", ~test.wanted)):
        bins = np.histogram(test.gate[mask].astype(np.float64), edges)[0]
        kinds[name] = (bins / max(1, mask.sum())).tolist()
    most = max(0.01, *kinds["wanted"], *kinds["unwanted"])
    plot = Plot((float(edges[0]), float(edges[-1])), (-most * 1.25, most * 1.25), left=14)
    return {"plot": plot, "edges": edges.tolist(), "threshold": threshold, "passes": edges[:-1] >= threshold, **kinds}


def _saved(test: Answers, metrics: JSON, threshold: float) -> dict[str, Any]:
    """Calls and bytes against sending everything, here and where less of what is heard is wanted."""
    passed = test.gate >= threshold
    recall, stopped = metrics["gate"]["recall"], metrics["gate"]["stopped"]
    elsewhere = []
    if recall is not None and stopped is not None:
        elsewhere = [(p, 1 - (p * recall + (1 - p) * (1 - stopped))) for p in (0.5, 0.1, 0.01)]
    return {
        "bytes": int(test.bytes.sum()),
        "bytes_sent": int(test.bytes[passed].sum()),
        "elsewhere": elsewhere,
        "wanted_share": float(test.wanted.mean()),
    }


def _matrix(figures: JSON) -> dict[str, Any]:
    """The confusion matrix, ordered so that labels taken for each other are neighbours; none of these comes last."""
    counts, names = np.array(figures["confusion"]), list(figures["names"])
    order = _order(counts[:-1, :-1])
    if len(order) > MATRIX_LABELS:
        wrong = counts.sum(axis=1) + counts.sum(axis=0) - 2 * np.diag(counts)
        kept = set(np.argsort(-wrong[:-1], kind="stable")[:MATRIX_LABELS].tolist())
        order = [i for i in order if i in kept]
    shown = [*order, len(names) - 1]
    total = counts.sum(axis=1)
    rows = [
        {
            "name": names[i],
            "clips": int(total[i]),
            "cells": [(int(counts[i, j]), float(counts[i, j] / max(1, total[i])), i == j) for j in shown],
        }
        for i in shown
    ]
    pairs = [
        (int(counts[i, j]), int(total[i]), names[i], names[j]) for i in shown for j in shown if i != j and counts[i, j]
    ]
    return {
        "names": [names[i] for i in shown],
        "rows": rows,
        "hidden": len(names) - len(shown),
        "worst": sorted(pairs, key=lambda p: (-p[0], p[1:]))[:CONFUSED],
    }


def _order(counts: NDArray[np.int64]) -> list[int]:
    """Labels in the order of a tree of their confusions (Bar-Joseph et al., Bioinformatics 2001)."""
    if len(counts) < 3:
        return list(range(len(counts)))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    distance = 2.0 - (share + share.T)
    np.fill_diagonal(distance, 0.0)
    return [int(i) for i in leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))]


def _per_label(test: Answers, point: OperatingPoint) -> list[dict[str, Any]]:
    """What became of each label's test clips; the wanted ones first, the worst of each kind first."""
    labels = np.array([c.label for c in test.clips])
    first, named = test.probabilities.argmax(axis=1), _named(test, point.rejection)
    passed, correct = test.gate >= point.threshold, right(test, point.threshold, point.rejection)
    rows = []
    for label in sorted({*labels.tolist(), *test.names[:-1]}):
        here = labels == label
        n, wanted = int(here.sum()), label in test.names[:-1]
        taken = np.bincount(named[here & passed & ~correct], minlength=len(test.names))
        rows.append(
            {
                "name": label,
                "wanted": wanted,
                "clips": n,
                "gate": int((here & (passed == wanted)).sum()),
                "classifier": int((here & (first == test.truth)).sum()),
                "pair": int((here & correct).sum()),
                "mistaken": (test.names[int(taken.argmax())], int(taken.max())) if taken.any() else None,
            }
        )
    return sorted(rows, key=lambda r: (not r["wanted"], not r["clips"], r["pair"] / max(1, r["clips"]), r["name"]))


def _reliability(test: Answers, bins: int = 10) -> dict[str, Any] | None:
    """How often the classifier was right against how sure it was, on wanted clips."""
    given = test.at(np.flatnonzero(test.wanted))
    if not len(given.clips):
        return None
    sure, correct = given.probabilities.max(axis=1), given.probabilities.argmax(axis=1) == given.truth
    which = np.minimum((sure * bins).astype(np.int64), bins - 1)
    points = [
        {"sure": float(sure[which == b].mean()), "right": float(correct[which == b].mean()), "clips": int(n)}
        for b, n in enumerate(np.bincount(which, minlength=bins))
        if n
    ]
    most = max(p["clips"] for p in points)
    return {
        "points": [{**p, "radius": round(3 + 9 * (p["clips"] / most) ** 0.5, 1)} for p in points],
        "error": calibration_error(given.probabilities, given.truth),
        "sure": float(sure.mean()),
        "right": float(correct.mean()),
        "plot": Plot((0.0, 1.0), (0.0, 1.0), 340, 310, top=18),
    }


def _samples(images: ImageSet, test: Answers, point: OperatingPoint) -> Iterator[dict[str, Any]]:
    """Clips to listen to, by kind: the worst mistakes of each, then some right answers."""
    none = len(test.names) - 1
    passed, wanted = test.gate >= point.threshold, test.wanted
    correct = right(test, point.threshold, point.rejection)
    named, sure = _named(test, point.rejection), test.probabilities.max(axis=1)
    lost = sure - test.probabilities[np.arange(len(sure)), test.truth]
    groups, labels = [c.group for c in test.clips], [c.label for c in test.clips]
    alarm = ~wanted & passed & (named != none)
    mistakes = (
        ("Missed by the gate", "Wanted, but stopped; lowest scores first.", wanted & ~passed, test.gate),
        ("False alarms", "Unwanted, let through, and given a label; surest first.", alarm, -sure),
        (
            "Named wrong",
            "Wanted, let through, and not given its label; surest first.",
            wanted & passed & ~correct,
            -lost,
        ),
    )
    kinds = [(t, m, mask, _distinct(groups, mask, order, MISTAKES_PER_KIND)) for t, m, mask, order in mistakes]
    named_right = _distinct(labels, correct & wanted, -sure, RIGHT_ONES - 2)
    stopped = _distinct(labels, ~wanted & ~passed, test.gate, 2)
    meaning = "The surest of a few labels, and unwanted clips that the gate stopped."
    kinds.append(("Right", meaning, correct, named_right + stopped))
    for title, meaning, mask, chosen in kinds:
        clips = [_sample(images, test, i, point) for i in chosen]
        yield {"title": title, "meaning": meaning, "clips": clips, "of": int(mask.sum())}


def _distinct(kinds: Sequence[str], mask: NDArray[np.bool_], order: Floats, count: int) -> list[int]:
    """Up to `count` positions of the mask, lowest `order` first, each of another kind."""
    chosen: dict[str, int] = {}
    for i in np.argsort(order, kind="stable").tolist():
        if mask[i] and len(chosen) < count:
            chosen.setdefault(kinds[i], i)
    return list(chosen.values())


def _sample(images: ImageSet, test: Answers, i: int, point: OperatingPoint) -> dict[str, Any]:
    clip, probabilities = test.clips[i], test.probabilities[i]
    top = np.argsort(-probabilities, kind="stable")[:3].tolist()
    truth = int(test.truth[i])
    shown = top if truth in top else [*top[:2], truth]
    row = next(
        (int(np.searchsorted(images.clip_of_row, n)) for n, c in enumerate(images.clips) if c.sha256 == clip.sha256),
        None,
    )
    return {
        "clip": clip,
        "picture": None if row is None else _data("image/png", pictures.png(images.take(np.array([row]))[0])),
        "sound": _sound(clip),
        "score": float(test.gate[i]),
        "passed": bool(test.gate[i] >= point.threshold),
        "answers": [{"name": test.names[k], "share": float(probabilities[k]), "true": k == truth} for k in shown],
    }


def _sound(clip: Clip) -> str | None:
    """The loudest seconds of a clip as a data URI, or nothing when its file is no longer what it was.

    MP3, because every browser plays it: Safari learned Ogg Vorbis only in version 18.4, and FLAC takes four times
    the room.
    """
    import soundfile

    try:
        content = sources.read(clip.path)
        if digest(content) != clip.sha256:
            return None
        pcm = excerpt(decode(content, clip.name))
    except (sources.Unreachable, BadClip):
        return None
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return _data("audio/mpeg", file.getvalue())


def excerpt(pcm: Floats, seconds: float = EXCERPT_S) -> Floats:
    """The loudest `seconds` of a clip, scaled to a peak of 0.9 and faded in and out: float32 [n] -> [<= n]."""
    length = min(len(pcm), int(seconds * SAMPLE_RATE))
    energy = np.concatenate([[0.0], np.cumsum(np.square(pcm, dtype=np.float64))])
    start = int((energy[length:] - energy[:-length]).argmax())
    cut = pcm[start : start + length] * np.float32(0.9 / max(float(np.abs(pcm[start : start + length]).max()), 1e-6))
    fade = np.minimum(1.0, np.arange(1, length + 1, dtype=np.float32) / (SAMPLE_RATE // 200))
    return np.asarray(cut * fade * fade[::-1], np.float32)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _training(name: str, trained: JSON) -> dict[str, Any]:
    """Loss and accuracy over the epochs, on train and validation images."""
    history = trained["history"]
    epochs = len(next(iter(history.values()), []))
    charts = []
    for what in ("loss", "accuracy"):
        lines = [
            (label, history[key]) for label, key in (("train", what), ("validation", f"val_{what}")) if history.get(key)
        ]
        if not lines or epochs < 1:
            continue
        values = [v for _, line in lines for v in line if np.isfinite(v)] or [0.0]
        low, high = (0.0, max(values) * 1.05 or 1.0) if what == "loss" else (min(0.9, *values), 1.0)
        plot = Plot((1, max(2, epochs)), (low, high), 440, 220, right=86)
        ends = _apart([plot.py(line[-1]) if np.isfinite(line[-1]) else plot.top for _, line in lines])
        charts.append(
            {"what": what, "plot": plot, "lines": [(*line, end) for line, end in zip(lines, ends, strict=True)]}
        )
    return {
        "name": name,
        "charts": charts,
        "epochs": epochs,
        "seconds": sum(history.get("seconds", [])),
        "recipe": trained["recipe"],
    }


def _apart(ends: list[float], gap: float = 14.0) -> list[float]:
    """Heights of two labels, moved apart so that both can be read."""
    if len(ends) == 2 and abs(ends[0] - ends[1]) < gap:
        middle, half = sum(ends) / 2, gap / 2
        return [middle - half, middle + half] if ends[0] <= ends[1] else [middle + half, middle - half]
    return ends


def _sheet(images: ImageSet) -> list[dict[str, Any]]:
    """A few images of each label, the wanted labels first; of too many labels, those with the most clips."""
    clips = {name: sum(c.label == name for c in images.clips) for name in images.labels}
    shown = set(sorted(clips, key=lambda name: (-clips[name], name))[:SHEET_LABELS])
    each = max(2, min(6, SHEET_IMAGES // max(1, len(shown))))
    labels = []
    for name in pictures.by_wanted(images):
        if name in shown:
            tiles = images.take(pictures.example_rows(images, name, each))
            drawn = [_data("image/png", pictures.png(tile)) for tile in tiles]
            labels.append({"name": name, "wanted": name in images.wanted, "clips": clips[name], "tiles": drawn})
    return labels
