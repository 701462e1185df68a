"""A finished release, asked again: evaluate it on any labelled clips, choose another threshold, compare two.

Clips and groups that a release learned from, or on which its threshold was chosen, are left out (`heard.csv`): its
figures on those would flatter.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twophase.audio.dataset import Clip, find_clips
from twophase.audio.frontend import FRONT_END
from twophase.display import table
from twophase.errors import TwoPhaseError
from twophase.files import new_directory
from twophase.release import card, heard, manifest
from twophase.release.heard import unheard
from twophase.release.manifest import EXTRA, NONE, Manifest
from twophase.training import compare as comparison
from twophase.training.answers import Answers, ask
from twophase.training.conditions import CONDITIONS
from twophase.training.evaluate import evaluate_conditions, gate_scores
from twophase.training.operating_point import choose, parse_rule

Progress = Callable[[int, int], object]


def examine(release: Path, data: Path | str, progress: Progress) -> dict[str, Any]:
    """Every figure of a release on the clips of `data` that it has not heard; see `evaluate.evaluate_conditions`."""
    found = _verified(release)
    clips, skipped = find_clips(data)
    fresh = unheard(release, clips)
    if not fresh:
        raise TwoPhaseError(
            f"{data}: {found.id} learned from every one of these {len(clips)} clips or their groups; "
            "evaluate it on others, or on the data folder with its test clips"
        )
    count = len(CONDITIONS) * len(fresh)

    def asked(before: int, condition: str) -> Answers:
        return _answers(release, found, fresh, lambda done, _: progress(before + done, count), condition)

    given = {condition: asked(i * len(fresh), condition) for i, condition in enumerate(CONDITIONS)}
    figures = evaluate_conditions(given, found.operating_point.threshold, found.operating_point.rejection)
    figures["bad"] = [*figures["bad"], *map(list, skipped)]
    return {"release": found.id, "heard": len(clips) - len(fresh), **figures}


def tune(release: Path, data: Path | str, rule: str, progress: Progress) -> dict[str, Any]:
    """Choose the threshold again on the validation clips of `data`; write the new release beside the old one."""
    found = _verified(release)
    clips, _ = find_clips(data)
    validation = unheard(release, [c for c in clips if c.split == "validation"], ("train",))
    given = _answers(release, found, validation, progress)
    point = choose(given, parse_rule(rule))
    name = manifest.release_id(found.labels, found.computes, point.threshold, point.rejection)
    target = release.resolve().parent / name
    if not target.exists():
        with new_directory(target) as folder:
            shutil.copytree(release, folder, dirs_exist_ok=True)
            heard.write(folder, heard.read(release) | heard.lines_of(validation))
            lineage = {**found.lineage, "tuned_from": found.id}
            card.write(folder, name, found.labels, point, {}, lineage)
            digests = manifest.files_of(folder)
            metrics = {"gate_scores": gate_scores(given, point.threshold)}
            tuned = replace(found, id=name, operating_point=point, lineage=lineage, metrics=metrics, digests=digests)
            manifest.write(folder, tuned)
    return {"release": str(target), "release_id": name, "operating_point": point.__dict__}


def compare(champion: Path, challenger: Path, data: Path | str, progress: Progress) -> comparison.Verdict:
    """Is the second release better than the first, over the clips of `data` that neither has heard?"""
    old, new = manifest.verify(champion), manifest.verify(challenger)
    if not set(new.labels) & set(old.labels):
        raise TwoPhaseError(f"{new.id} and {old.id} have no label in common, so there is no comparing them")
    for found, other in ((new, old), (old, new)):
        if comparison.front_end_of(other) is None:
            return comparison.not_comparable(found, other)
    clips = unheard(champion, unheard(challenger, find_clips(data)[0]))
    if not clips:
        raise TwoPhaseError(f"{data}: has no clip that neither {new.id} nor {old.id} learned from; give others")
    count = 2 * len(clips)
    theirs = _answers(champion, old, clips, lambda done, _: progress(done, count))
    ours = _answers(challenger, new, clips, lambda done, _: progress(done + len(clips), count))
    return comparison.compare(
        comparison.Side(new.id, ours, new.operating_point.threshold, new.operating_point.rejection),
        comparison.Side(old.id, theirs, old.operating_point.threshold, old.operating_point.rejection),
    )


def show(figures: dict[str, Any]) -> None:
    """The figures as a table for people."""

    def cell(part: str, name: str) -> list[str]:
        value, interval = figures[part][name], figures[part].get("intervals", {}).get(name)
        if value is None:
            return [f"{part}: {name.replace('_', ' ')}", "no such clips", ""]
        return [
            f"{part}: {name.replace('_', ' ')}",
            f"{value:.3f}",
            f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
        ]

    wanted = (
        ("gate", ("accuracy", "recall", "precision", "stopped", "escalation_rate")),
        ("classifier", ("accuracy", "top3", "ece")),
        ("pair", ("accuracy", "calls_ratio", "bytes_ratio")),
    )
    conditions = [
        [f"{name}, worst condition: {worst['condition']}", f"{worst['value']:.3f}", ""]
        for name, worst in figures.get("headline", {}).items()
    ]
    title = f"{figures['release']} on {figures['clips']} unheard clips ({figures['heard']} heard ones left out)"
    table(
        ["figure", "value", "95 % interval"],
        [cell(p, n) for p, names in wanted for n in names] + conditions,
        title=title,
    )


def _answers(
    release: Path, found: Manifest, clips: Sequence[Clip], progress: Progress, condition: str = "clean"
) -> Answers:
    done = 0

    def report(n: int) -> None:
        nonlocal done
        done += n
        progress(done, len(clips))

    extra, front_end = release / EXTRA, comparison.front_end_of(found) or FRONT_END
    files = extra / "gate.tflite", extra / "classifier.tflite"
    return ask(*files, (*found.labels, NONE), clips, report, condition, front_end)


def _verified(release: Path) -> Manifest:
    found = manifest.verify(release)
    manifest.require_front_end(found)
    return found
