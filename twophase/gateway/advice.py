"""What the field says should be done: retune a gate that misses too much, retrain one whose sound has changed.

Advice is given once for a gate and a reason: it stands among the events, and where a folder for news is named it comes
with the clips that it rests on, as the trigger on new data (`pipelines/news.py`) and `twophase data` read them:

    NEWS/LABEL/GATE-DEVICE-SEQUENCE.flac    the audit and escalation clips of that gate that are still here, by the
                                            classifier's label: nobody has verified it
    NEWS/GATE-REASON/manifest.json          the advice and its figures; written last: the trigger waits for it
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import select

from twophase.files import replacing, write_json
from twophase.gateway import field
from twophase.gateway.published import Published, published
from twophase.gateway.store import Store, clip, log, note

WHAT = "advice"
_SUFFIXES = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg"}


@dataclass(frozen=True)
class Advice:
    """One thing that should be done."""

    gate: str
    do: str
    """`retune` or `retrain`."""
    why: str


def advise(figures: list[field.Field], promised: Callable[[str], Published]) -> list[Advice]:
    """What figures of the field call for, by what was promised of each gate."""
    found = []
    for f in figures:
        chosen_for = promised(f.gate).recall
        if f.recall is not None and chosen_for is not None and f.recall.high < chosen_for:
            between = f"between {f.recall.low:.1%} and {f.recall.high:.1%}"
            found.append(Advice(f.gate, "retune", f"its recall is {between}, chosen for {chosen_for:.1%}"))
        moved = {"no mixture of its validation clips explains its scores": f.drift, "its scores changed": f.change}
        far = {words: index for words, index in moved.items() if index is not None and index > field.DRIFTED}
        if why := [f"{words}: stability index {index:.2f}" for words, index in far.items()]:
            found.append(Advice(f.gate, "retrain", f"{'; '.join(why)} > {field.DRIFTED}"))
    return found


def give(store: Store, home: Path, news: Path | None) -> list[Advice]:
    """Give the advice that was not given before; what is new of it. Raises `TwoPhaseError` for a bad `news`."""
    promised = partial(published, home)
    figures = store.do(lambda c: field.figures(c, promised))
    given = store.do(lambda c: set(c.scalars(select(log.c.message).where(log.c.what == WHAT))))
    new = []
    for item in advise(figures, promised):
        if any(message.startswith(f"{item.gate} {item.do}:") for message in given):
            continue
        if news is not None:
            _write(store, home, news, item, next(f for f in figures if f.gate == item.gate))
        store.do(lambda c, item=item: note(c, WHAT, "", f"{item.gate} {item.do}: {item.why}"))  # type: ignore[misc]
        new.append(item)
    return new


def _write(store: Store, home: Path, news: Path, item: Advice, figures: field.Field) -> None:
    said = news / f"{item.gate}-{item.do}" / "manifest.json"
    if said.is_file():
        return  # given before, and the event lost to a crash
    rows = store.do(
        lambda c: c.execute(
            select(clip.c.device, clip.c.sequence, clip.c.prediction).where(
                clip.c.gate == item.gate, clip.c.prediction.is_not(None)
            )
        ).all()
    )
    for row in rows:
        source = home / "clips" / row.device / str(row.sequence)
        if source.is_file():
            name = f"{item.gate}-{row.device}-{row.sequence}{_suffix(source)}"
            with source.open("rb") as sound, replacing(news / row.prediction["label"] / name) as copy:
                shutil.copyfileobj(sound, copy)
    write_json(said, {**asdict(item), "figures": asdict(figures)})


def _suffix(path: Path) -> str:
    with path.open("rb") as file:
        return _SUFFIXES.get(file.read(4), ".mp3")
