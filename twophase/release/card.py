"""The model card of a release: what it is for, what it was measured to do, and what that does not show.

    RELEASE/assets.extra/model-card.md    Markdown; the questions are those of Mitchell et al., FAT* 2019
                                          (arXiv:1810.03993)

Written with the release, from the release's own figures; covered by its digests.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twophase.release.manifest import EXTRA, OperatingPoint

CARD = f"{EXTRA}/model-card.md"

_FIGURES = (
    ("gate", "recall", "Gate: wanted clips let through"),
    ("gate", "stopped", "Gate: unwanted clips stopped"),
    ("classifier", "accuracy", "Classifier: wanted clips named right"),
    ("classifier", "top3", "Classifier: right label among its first three"),
    ("pair", "accuracy", "Both as one: clips that end as they should"),
)


def write(
    release: Path,
    name: str,
    labels: Sequence[str],
    point: OperatingPoint,
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
) -> None:
    """Write the card of release `name` into its folder; `metrics` may be empty where nothing was measured."""
    parts = (
        f"# {name}",
        _about(labels),
        _measured(metrics),
        _heard(metrics.get("conditions", {})),
        _point(point),
        _field(metrics.get("robustness", ())),
        _labels(metrics.get("classifier", {}).get("per_label", {})),
        _LIMITS,
        _origin(lineage),
    )
    (release / CARD).write_text("\n\n".join(part for part in parts if part) + "\n", "utf-8")


def _about(labels: Sequence[str]) -> str:
    return f"""Two networks that work as one: a gate that decides on the device whether a sound is worth asking about,
and a classifier that names what the gate lets through. Both look at log-mel images of one-second windows.

**Names:** {", ".join(map(_plain, labels))}; or none of these.

**Meant for** sounds like those that it learned from, where a miss or a wrong name costs little. **Not meant for**
recognising people, for speech, or for decisions about safety."""


def _measured(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "## What it does\n\nNot measured since its threshold was chosen."
    worst = metrics.get("headline", {})
    rows = [
        (
            what,
            _percent(metrics[part][key]),
            _between(metrics[part].get("intervals", {}).get(key)),
            _worst(worst.get(f"{part} {key}")),
        )
        for part, key, what in _FIGURES
    ]
    error = metrics["classifier"].get("ece")
    return f"""## What it does

On {metrics["clips"]} test clips from groups (notes, speakers, recordings) that neither model heard; intervals are 95 %,
by group.

{_table(("", "share", "interval", "at worst"), rows)}

Calibration error of the classifier, not debiased: {"-" if error is None else f"{error:.3f}"}."""


def _heard(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    if not conditions:
        return ""
    rows = [
        (
            in_words(name),
            f"{figures['clips']}, {figures['classifier']['clips']} wanted",
            *(_percent(figures[part][key]) for part, key, _ in _FIGURES),
        )
        for name, figures in conditions.items()
    ]
    columns = ("heard", "clips", *(what for _, _, what in _FIGURES))
    return f"""## As devices hear it

The same test clips under field conditions; expect the worst of them. Wanted clips are mixed with unwanted test clips.

{_table(columns, rows)}"""


def _point(point: OperatingPoint) -> str:
    rows = [
        (what, _percent(getattr(point, key)), _between(point.intervals.get(key)))
        for key, what in (
            ("recall", "wanted let through"),
            ("stopped", "unwanted stopped"),
            ("escalation_rate", "all let through"),
        )
    ]
    rejected = f" Answers less sure than {_percent(point.rejection)} count as none of these." if point.rejection else ""
    cost = f" A clip costs {point.cost:.3g} on average." if point.cost is not None else ""
    return f"""## The operating point

The gate lets a clip through from a mean logit of {point.threshold:.3f}, chosen by: {point.chosen_by}.{rejected}{cost}
On the validation clips:

{_table(("", "share", "interval"), rows)}"""


def _field(robustness: Sequence[Mapping[str, Any]]) -> str:
    if not robustness:
        return ""
    rows = [
        (in_words(row["condition"]), *(_percent(row[k]) for k in ("recall", "stopped", "classifier", "pair")))
        for row in robustness
    ]
    columns = ("heard", "wanted let through", "unwanted stopped", "wanted named right", "end as they should")
    return f"""## In noise and at low levels

The same {robustness[0]["clips"]} test clips, made harder one way at a time.

{_table(columns, rows)}"""


def _labels(per_label: Mapping[str, Mapping[str, Any]]) -> str:
    if not per_label:
        return ""
    rows = [(_plain(name), str(row["clips"]), _percent(row["recall"])) for name, row in per_label.items()]
    return f"## By label\n\n{_table(('label', 'test clips', 'named right'), rows)}"


_LIMITS = """## What this does not show

- Figures hold for sounds, rooms and microphones like those of the test clips. A label with few test clips may be far
  from its figure.
- A threshold for a high recall rests on the few wanted clips that score lowest: choose it on more clips
  (`twophase tune`) before relying on it.
- Sounds of no label at all are only as well told apart as the unwanted training clips were like them.
- Images are not anonymous: what was said can be heard from them again."""


def _origin(lineage: Mapping[str, Any]) -> str:
    rows = [
        (_plain(name), ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else f"`{value}`")
        for name, value in lineage.items()
    ]
    return f"""## Where it comes from

{_table(("what", "value"), rows)}

`release.json` beside this card holds every figure and every file's digest; `heard.csv` names, as digests, the clips it
learned from."""


def in_words(name: str) -> str:
    """A condition of `training.conditions` as people say it."""
    what, _, amount = name.partition(" ")
    words = {
        "channel": "through one 8 kHz channel",
        "mixed": "so, and over a background at 0, 10 or 20 dB",
        "snr": f"{amount} dB above a background",
        "level": f"{amount} dB quieter",
    }
    return words.get(what, "as they are")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _worst(found: Mapping[str, Any] | None) -> str:
    return f"{_percent(found['value'])} ({found['condition']})" if found else "-"


def _between(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "-"


def _plain(text: str) -> str:
    """A label as text: nothing in it is markup, or ends a table's cell."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>()#|!&" else " " if c.isspace() else c for c in text)
