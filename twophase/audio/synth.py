"""Labelled clips from nothing: instruments from a General MIDI soundfont, and sounds that are no instrument.

A clip is a function of (label, seed, index) alone: the same three give the same bytes in any order, process or folder,
with the same versions of symusic, NumPy, SciPy and soxr. Both families go through the same `effects.record`, so that
neither room, noise, level nor length tells them apart.

    FOLDER/
      <label>/<label>-<index>.flac     16 bits, mono, 16 kHz
      wanted.txt                       the instrument labels, one a line
      labels.csv                       fname,label,manually_verified,group; written last

The folder appears whole or not at all: a crash leaves a `.tmp-*` beside it, which nothing reads.
"""

import csv
import io
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
from scipy.signal import lfilter

from twophase.audio import everyday, soundfont, soundfont_file
from twophase.audio.effects import record
from twophase.audio.frontend import SAMPLE_RATE, Floats
from twophase.audio.soundfont import DRUMS
from twophase.errors import UsageError
from twophase.files import new_directory

SHORTEST_S, LONGEST_S = 0.3, 4.0
"""Bounds of a clip's length."""

SILENT = 1e-4
"""A clip whose sound never exceeds this, before room and noise, is silent: its soundfont zone has no sample."""

_Rng = np.random.Generator


@dataclass(frozen=True)
class _Voice:
    """One way to sound an instrument: a program (or drum kit) over a range of keys, both ends included."""

    style: Literal["sustained", "plucked", "ringing", "drum"]
    program: int
    low: int
    high: int
    attack_s: float = 0.0
    """How long a note takes to speak, give or take a half: the soundfont's loops have lost it."""
    vibrato_cents: float = 0.0
    """How far players of this instrument usually let the pitch swing, at most."""
    tremolo: float = 0.0
    """The same for loudness, from 0 to 1."""


def _drum(*keys: int) -> tuple[_Voice, ...]:
    return tuple(_Voice("drum", kit, key, key) for kit in (0, 8, 16, 24, 25, 32, 40, 48) for key in keys)


# Keys are where the instruments are mostly played, well within what they can reach.
_VOICES = {
    "Acoustic_guitar": (_Voice("plucked", 24, 40, 76), _Voice("plucked", 25, 40, 76)),
    "Bass_drum": _drum(35, 36),
    "Cello": (_Voice("sustained", 42, 36, 67, 0.12, 35.0),),
    "Chime": (_Voice("ringing", 14, 60, 77), _Voice("ringing", 112, 72, 90)),
    "Clarinet": (_Voice("sustained", 71, 50, 82, 0.04),),
    "Cowbell": _drum(56),
    "Double_bass": (_Voice("plucked", 32, 28, 55), _Voice("sustained", 43, 28, 55, 0.15, 15.0)),
    "Electric_piano": (_Voice("plucked", 4, 36, 84), _Voice("plucked", 5, 36, 84)),
    "Flute": (_Voice("sustained", 73, 60, 91, 0.07, 25.0, 0.3),),
    "Glockenspiel": (_Voice("ringing", 9, 79, 108),),
    "Harmonica": (_Voice("sustained", 22, 60, 84, 0.03, 10.0, 0.7),),
    "Hi-hat": _drum(42, 44, 46),
    "Oboe": (_Voice("sustained", 68, 58, 84, 0.025, 25.0),),
    "Saxophone": (
        _Voice("sustained", 64, 56, 84, 0.03, 30.0),
        _Voice("sustained", 65, 49, 77, 0.03, 30.0),
        _Voice("sustained", 66, 44, 72, 0.03, 30.0),
        _Voice("sustained", 67, 36, 65, 0.03, 30.0),
    ),
    "Snare_drum": _drum(38, 40),
    "Tambourine": _drum(54),
    "Trumpet": (_Voice("sustained", 56, 54, 82, 0.015), _Voice("sustained", 59, 54, 82, 0.015)),
    "Violin_or_fiddle": (_Voice("sustained", 40, 55, 88, 0.09, 45.0), _Voice("sustained", 110, 55, 88, 0.06, 30.0)),
    "Bassoon": (_Voice("sustained", 70, 34, 67, 0.03, 10.0),),
    "French_horn": (_Voice("sustained", 60, 34, 74, 0.05),),
    "Trombone": (_Voice("sustained", 57, 40, 70, 0.03, 10.0),),
}

# Every other sound of a General MIDI soundfont, over the keys at which it was rendered twice alike and in tune.
_PLUCKED = {*range(16), *range(24, 40), 45, 46, 47, *range(104, 109), *range(112, 120)}
_HIGHEST = {65: 77, 67: 65}
_PROGRAMS = {
    f"Program_{p:03d}": (
        _Voice("plucked" if p in _PLUCKED else "sustained", p, 36, _HIGHEST.get(p, 84), 0.03, 15.0, 0.15),
    )
    for p in range(120)
    if p != 78  # the whistle's loop is shorter than a sample
}

_Effect = tuple[int, int, int]  # a General MIDI sound effect: program, lowest key, highest key
_Recipe = Callable[[_Rng, float, int], Floats]
_EVERYDAY: dict[str, tuple[_Effect | _Recipe, ...]] = {
    "Alarm": ((124, 56, 84), everyday.beeps, everyday.siren),
    "Bird": ((123, 34, 66), everyday.chirps),
    "Crowd": ((126, 40, 84), everyday.clapping),
    "Impact": ((127, 72, 106), everyday.crackle, everyday.knocks),
    "Machine": ((125, 84, 108), everyday.engine, everyday.hum),
    "Noise": (everyday.bursts, everyday.hiss),
    "Speech": (everyday.babble,),
    "Weather": ((122, 60, 86), everyday.wind, everyday.rain),
}

EXTRA_LABELS: tuple[str, ...] = ("Bassoon", "French_horn", "Trombone")
"""Instruments that are rendered when they are asked for by name."""

PROGRAM_LABELS: tuple[str, ...] = tuple(_PROGRAMS)
"""The 119 melodic programs of General MIDI as labels of their own, to learn from how sounds differ."""

LABELS: tuple[str, ...] = tuple(label for label in _VOICES if label not in EXTRA_LABELS)
"""The wanted labels: the instruments of FSDKaggle2018 that General MIDI has, which is all of them but Gong."""

OTHER_LABELS: tuple[str, ...] = tuple(_EVERYDAY)
"""The labels of sounds that are no instrument."""

ALL_LABELS: tuple[str, ...] = LABELS + EXTRA_LABELS + OTHER_LABELS + PROGRAM_LABELS
"""Every label that can be rendered."""

_SOUNDING = _VOICES | _PROGRAMS

_BUCKETS = 24  # groups of one everyday recipe, and tunings of one drum


@dataclass(frozen=True)
class SynthSummary:
    """What `write_clips` wrote: clips by label, and how many silent ones it dropped."""

    clips: dict[str, int]
    silent: int


def render(label: str, seed: int, index: int) -> Floats:
    """Clip `index` of a label: float32 [n] mono at 16 kHz in (-1, 1), 0.3 to 4 s.

    Raises `UsageError` for a label that is not in `ALL_LABELS`, and for a negative seed or index.
    """
    return _clip(label, seed, index)[0]


def write_clips(
    folder: Path,
    per_label: int,
    seed: int,
    labels: Sequence[str] = LABELS + OTHER_LABELS,
    progress: Callable[[int], None] | None = None,
    soundfonts: Sequence[Path] = (),
) -> SynthSummary:
    """Render `per_label` clips of each label into a new folder; `progress` is told how many clips each label brought.

    With `soundfonts`, SoundFont 2 files, an instrument is played by one of them or by the embedded one, as it comes.

    Clips of one note, or of one recipe and nearly one pitch or rate, share a group. Raises `UsageError` for arguments
    that cannot be rendered, before anything is written, and `TwoPhaseError` when `folder` is not new or cannot be
    written.
    """
    if per_label < 1:
        raise UsageError(f"per_label: {per_label} is not a number of clips; give 1 or more")
    if not labels:
        raise UsageError(f"labels: none given; choose from {', '.join(ALL_LABELS)}")
    labels = tuple(dict.fromkeys(labels))
    for label in labels:
        _check(label, seed, 0)
    rows: list[tuple[str, str, int, str]] = []
    with new_directory(folder) as aside:
        for label in labels:
            (aside / label).mkdir()
            before = len(rows)
            for index in range(per_label):
                pcm, group = _clip(label, seed, index, soundfonts)
                if len(pcm):
                    name = f"{label}/{label}-{index:05d}.flac"
                    (aside / name).write_bytes(_flac(pcm))
                    rows.append((name, label, 1, group))
            if progress:
                progress(len(rows) - before)
        wanted = [label for label in labels if label in _SOUNDING]
        (aside / "wanted.txt").write_text("".join(f"{label}\n" for label in wanted), "utf-8")
        with (aside / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("fname", "label", "manually_verified", "group"))
            table.writerows(rows)
    counts = Counter(row[1] for row in rows)
    return SynthSummary({label: counts[label] for label in labels}, per_label * len(labels) - len(rows))


def _clip(label: str, seed: int, index: int, soundfonts: Sequence[Path] = ()) -> tuple[Floats, str]:
    """A clip and its group; a silent one has no samples."""
    _check(label, seed, index)
    rng = np.random.default_rng((zlib.crc32(label.encode()), seed, index))
    if label in _SOUNDING:
        font = (None, *soundfonts)[rng.integers(len(soundfonts) + 1)] if soundfonts else None
        dry, source = _play(_SOUNDING[label], rng, font)
    else:
        dry, source = _happen(_EVERYDAY[label], rng)
    if np.max(np.abs(dry), initial=0.0) < SILENT:
        return np.empty(0, np.float32), ""
    onset = int(rng.uniform(0.0, 0.2) * SAMPLE_RATE)
    dry = _faded(_trimmed(dry)[: int(LONGEST_S * SAMPLE_RATE) - onset])
    length = np.clip((onset + len(dry)) / SAMPLE_RATE + rng.uniform(0.0, 0.5), SHORTEST_S, LONGEST_S)
    pcm = np.zeros(int(length * SAMPLE_RATE), np.float32)
    pcm[onset : onset + len(dry)] = dry
    return record(pcm, rng), f"{label}-{source}"


def _check(label: str, seed: int, index: int) -> None:
    if label not in ALL_LABELS:
        raise UsageError(f"label {label!r}: cannot be rendered; choose from {', '.join(ALL_LABELS)}")
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise UsageError(f"{name}: {value} is negative; give 0 or more")


# ---- instruments


def _play(voices: tuple[_Voice, ...], rng: _Rng, font: Path | None) -> tuple[Floats, str]:
    """A note, a phrase, a chord or a rhythm on an instrument of a soundfont, and what it is grouped by."""
    voice = voices[rng.integers(len(voices))]
    key = int(rng.integers(voice.low, voice.high + 1))
    group = f"{voice.program}.{key}"
    if font:
        group, velocity = f"{font.stem}.{group}", int(rng.integers(30, 128))

    def sound(what: _Note) -> Floats:
        return soundfont_file.note(font, *what[:4], velocity) if font else soundfont.note(*what)

    if voice.style == "drum":
        tuning = int(rng.integers(_BUCKETS))
        cents = (tuning - _BUCKETS / 2 + rng.random()) * 35.0
        strike = (DRUMS, voice.program, key, 1.2, rng.uniform(0.5, 2.0), 0.0)
        pcm = _mix([(at, loud, strike) for at, loud in _rhythm(rng)], sound)
        group += f"-{tuning}"
    else:
        cents = float(rng.normal(0.0, 12.0))
        sustained = voice.style == "sustained"
        decay = np.inf if sustained else rng.uniform(1.0, 6.0) * 2.0 ** ((60 - key) / 24.0)
        attack = voice.attack_s * rng.uniform(0.5, 1.5)
        score = [(at, loud, (0, voice.program, k, s, decay, attack)) for at, loud, k, s in _phrase(voice, key, rng)]
        pcm = _mix(score, sound)
        pcm = _swung(pcm, voice, rng)
    pcm = soxr.resample(pcm, soundfont.RATE * 2.0 ** (cents / 1200.0), SAMPLE_RATE, "MQ")
    return _softened(pcm, rng), group


def _rhythm(rng: _Rng) -> list[tuple[float, float]]:
    """When a drum is hit and how hard: one hit, a rhythm or a roll, within 2.5 s."""
    kind = rng.choice(["hit", "rhythm", "roll"], p=(0.45, 0.35, 0.2))
    if kind == "hit":
        return [(0.0, 1.0)]
    if kind == "rhythm":
        spread, steps = 0.4, rng.uniform(0.12, 0.5) * rng.choice([0.5, 1.0, 1.0, 2.0], rng.integers(1, 7))
    else:
        spread, steps = 0.15, rng.uniform(0.04, 0.09) * rng.uniform(0.9, 1.1, rng.integers(5, 23))
    times = np.concatenate([[0.0], np.cumsum(steps)])
    return [(float(at), float(np.exp(rng.normal(0.0, spread)))) for at in times[times < 2.5]]


def _phrase(voice: _Voice, key: int, rng: _Rng) -> list[tuple[float, float, int, float]]:
    """(onset in s, loudness, key, seconds) of the notes of a short musical gesture that begins with `key`."""
    kind = rng.choice(["long", "short", "staccato", "legato", "chord"], p=(0.3, 0.15, 0.15, 0.25, 0.15))
    sustained = voice.style == "sustained"
    if kind == "long" or (kind == "chord" and sustained):
        return [(0.0, 1.0, key, rng.uniform(0.8, 2.5))]
    if kind == "short":
        return [(0.0, 1.0, key, rng.uniform(0.15, 0.5))]
    if kind == "chord":
        tones = (key, *(key + i for i in _CHORDS[rng.integers(len(_CHORDS))] if key + i <= voice.high))
        strum, seconds = rng.uniform(0.0, 0.04), rng.uniform(0.6, 2.2)
        return [(i * strum, rng.uniform(0.6, 1.0), k, seconds) for i, k in enumerate(tones)]
    gap, held = (rng.uniform(0.12, 0.3), rng.uniform(0.4, 0.7)) if kind == "staccato" else (rng.uniform(0.25, 0.6), 1.1)
    held = held if sustained else 2.0 * held  # strings and bars ring on
    score = []
    for i in range(int(rng.integers(3, 6))):
        score.append((i * gap, float(rng.uniform(0.6, 1.0)), key, gap * held))
        key = int(np.clip(key + rng.integers(-4, 5), voice.low, voice.high))
    return score


_CHORDS = ((4, 7, 12), (3, 7, 12), (4, 7, 10), (7, 12, 16), (7, 12, 15, 19), (5, 7, 12), (4, 7))

_Note = tuple[int, int, int, float, float, float]
"""Bank, program, key, seconds, decay and attack in seconds: the arguments of `soundfont.note`."""


def _mix(score: list[tuple[float, float, _Note]], sound: Callable[[_Note], Floats]) -> Floats:
    """Notes (onset in s, loudness, what to play) laid over each other, at `soundfont.RATE`."""
    notes = {what: sound(what) for what in dict.fromkeys(what for _, _, what in score)}
    placed = [(int(at * soundfont.RATE), loud, notes[what]) for at, loud, what in score]
    out = np.zeros(max(at + len(pcm) for at, _, pcm in placed), np.float32)
    for at, loud, pcm in placed:
        out[at : at + len(pcm)] += np.float32(loud) * pcm
    return out


def _swung(pcm: Floats, voice: _Voice, rng: _Rng) -> Floats:
    """Vibrato and tremolo as the instrument has them, 4 to 7 times a second."""
    rate, cents, depth = rng.uniform(4.0, 7.0), voice.vibrato_cents * rng.random(), voice.tremolo * rng.random()
    t = np.arange(len(pcm), dtype=np.float32)
    wave = np.sin(t * np.float32(2.0 * np.pi * rate / soundfont.RATE))
    if cents > 1.0:
        reach = soundfont.RATE * (2.0 ** (cents / 1200.0) - 1.0) / (2.0 * np.pi * rate)  # in samples
        where = t + np.float32(reach) * (wave + np.float32(1.0))
        whole = where.astype(np.intp)
        part = where - whole
        held = np.pad(pcm, (0, int(2.0 * reach) + 3))
        pcm = held[whole] * (1.0 - part) + held[whole + 1] * part
    if depth > 0.0:
        pcm = pcm * (np.float32(1.0 - depth / 2.0) + np.float32(depth / 2.0) * wave)
    return np.asarray(pcm, np.float32)


# ---- everything else


def _happen(sources: tuple[_Effect | _Recipe, ...], rng: _Rng) -> tuple[Floats, str]:
    """An everyday sound, and what it is grouped by."""
    source = sources[rng.integers(len(sources))]
    seconds = float(rng.uniform(0.3, 3.0))
    if isinstance(source, tuple):
        program, low, high = source
        key = int(rng.integers(low, high + 1))
        once = _trimmed(soxr.resample(soundfont.note(0, program, key, seconds), soundfont.RATE, SAMPLE_RATE, "MQ"))
        pcm = np.zeros(int((seconds + 0.1) * SAMPLE_RATE), np.float32)
        gap = int(max(len(once), 800) * rng.choice([1.0, rng.uniform(1.0, 2.5)]))
        for at in range(0, len(pcm), gap):  # a ring, a tweet or a shot is short, and seldom comes alone
            pcm[at : at + len(once)] += once[: len(pcm) - at]
        return _softened(pcm, rng), f"{program}.{key}"
    bucket = int(rng.integers(_BUCKETS))
    pcm = source(rng, (bucket + rng.random()) / _BUCKETS, int(seconds * SAMPLE_RATE))
    return _softened(pcm, rng), f"{source.__name__}-{bucket}"


# ---- both


def _softened(pcm: Floats, rng: _Rng) -> Floats:
    """As hard or as soft as it is played: soft sounds lack upper partials (one pole from 3 to 20 kHz); and no DC."""
    pole = float(np.exp(-2.0 * np.pi * 3000.0 * 6.7 ** rng.random() / SAMPLE_RATE))
    blocker = 0.99  # a high pass at 25 Hz: some of the soundfont's samples are mostly DC
    zeros = np.array([1.0 - pole, pole - 1.0], np.float32)
    poles = np.array([1.0, -pole - blocker, pole * blocker], np.float32)
    return np.asarray(lfilter(zeros, poles, pcm), np.float32)


def _trimmed(pcm: Floats) -> Floats:
    """Without what lies after the last sample within 60 dB of the loudest."""
    size = np.abs(pcm)
    loud = np.flatnonzero(size > np.max(size, initial=0.0) * 1e-3)
    return pcm[: loud[-1] + 1] if len(loud) else pcm


def _faded(pcm: Floats) -> Floats:
    """Begin within 2 ms and end within 20, so that no clip begins or ends with a click."""
    gain = np.ones(len(pcm), np.float32)
    rise, fall = min(len(pcm), SAMPLE_RATE // 500), min(len(pcm), SAMPLE_RATE // 50)
    gain[:rise] = np.linspace(0.0, 1.0, rise)
    gain[len(pcm) - fall :] *= np.linspace(1.0, 0.0, fall, dtype=np.float32)
    return pcm * gain


def _flac(pcm: Floats) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.rint(pcm * 32767.0).astype(np.int16), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
