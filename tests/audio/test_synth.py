"""The synthesiser: same seed same bytes, every label, in tune, whole or absent."""

import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.audio import effects, soundfont, soundfont_file, synth
from twophase.audio.dataset import find_clips
from twophase.audio.decode import decode
from twophase.audio.frontend import SAMPLE_RATE, Floats
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import digest


def fundamental_error(pcm: Floats, key: int) -> float:
    """Semitones between the best period near a MIDI key's and that key's own, by autocorrelation."""
    y = pcm[soundfont.RATE // 4 : soundfont.RATE * 3 // 4].astype(np.float64)
    spectrum = np.fft.rfft(y - y.mean(), 2 * len(y))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(y)]
    period = soundfont.RATE / (440.0 * 2.0 ** ((key - 69) / 12.0))
    low, high = int(period * 0.6), int(period * 1.5) + 2
    return float(12.0 * np.log2(period / (low + correlation[low:high].argmax())))


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_labels_of_the_reference_notebook() -> None:
    assert len(synth.LABELS) == 18
    assert "Gong" not in synth.ALL_LABELS
    assert {"Bassoon", "French_horn", "Trombone"} <= set(synth.ALL_LABELS) - set(synth.LABELS)
    assert len(set(synth.ALL_LABELS)) == len(synth.ALL_LABELS)


@given(st.sampled_from(synth.ALL_LABELS), st.integers(0, 2**32), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_every_clip_is_finite_bounded_and_of_its_length(label: str, seed: int, index: int) -> None:
    pcm = synth.render(label, seed, index)
    assert pcm.dtype == np.float32
    assert pcm.ndim == 1
    if len(pcm):  # some keys have no sample in the soundfont
        assert synth.SHORTEST_S - 1e-3 <= len(pcm) / SAMPLE_RATE <= synth.LONGEST_S
        assert np.isfinite(pcm).all()
        assert 0.01 < np.abs(pcm).max() < 1.0


@pytest.mark.parametrize("label", synth.ALL_LABELS)
def test_every_label_sounds_and_varies(label: str) -> None:
    clips = [synth.render(label, 11, i) for i in range(5)]
    assert sum(len(c) > 0 for c in clips) >= 4
    assert len({c.tobytes() for c in clips}) == len(clips)


@pytest.mark.parametrize(
    ("program", "key"),
    [
        (40, 57),
        (40, 69),
        (40, 86),
        (42, 50),
        (22, 70),
        (24, 60),
        (25, 64),
        (32, 40),
        (56, 70),
        (73, 84),
        (70, 68),
        (71, 52),
    ],
)
def test_notes_are_in_tune(program: int, key: int) -> None:
    assert abs(fundamental_error(soundfont.note(0, program, key, 1.0), key)) < 0.6


@pytest.mark.parametrize("key", [35, 36, 38, 40, 42, 44, 46, 54, 56])
def test_drums_last_longer_than_a_click(key: int) -> None:
    pcm = soundfont.note(soundfont.DRUMS, 0, key, 1.0)
    assert np.flatnonzero(np.abs(pcm) > 0.02)[-1] > 0.03 * soundfont.RATE


def test_a_note_ends_without_a_click() -> None:
    pcm = soundfont.note(0, 73, 72, 0.5)
    assert np.abs(np.diff(pcm[-200:])).max() < 0.02
    assert pcm[-1] == 0.0


def test_a_key_without_a_sample_is_silence() -> None:
    assert not soundfont.note(0, 65, 64, 0.2).any()


def test_the_soundfont_is_found_without_importing_pretty_midi() -> None:
    code = "import sys; from twophase.audio import soundfont; soundfont.path(); sys.exit('pretty_midi' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_soundfonts_play_too(tmp_path: Path) -> None:
    pytest.importorskip("tinysoundfont", reason="in no extra: pip install --no-deps tinysoundfont")
    pcm = soundfont_file.note(soundfont.path(), 0, 73, 69, 1.0, 100)
    assert abs(fundamental_error(pcm, 69)) < 0.6
    assert not soundfont_file.note(soundfont.path(), 5, 99, 69, 0.1, 100).any()
    again = soundfont_file.note(soundfont.path(), 0, 73, 69, 1.0, 100)
    assert (pcm == again).all()
    synth.write_clips(tmp_path / "set", 12, 0, ["Flute", "Snare_drum"], soundfonts=[soundfont.path()])
    groups = {clip.group.split(".")[0] for clip in find_clips(tmp_path / "set")[0]}
    assert any("TimGM6mb" in group for group in groups)
    assert not all("TimGM6mb" in group for group in groups)
    (tmp_path / "no.sf2").write_bytes(b"RIFF")
    with pytest.raises(TwoPhaseError, match=r"no\.sf2: cannot be played"):
        soundfont_file.note(tmp_path / "no.sf2", 0, 0, 60, 0.1, 100)


def test_a_soundfont_without_its_player_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(TwoPhaseError, match="pip install --no-deps tinysoundfont"):
        synth.write_clips(tmp_path / "set", 8, 0, ["Flute"], soundfonts=[tmp_path / "some.sf2"])
    assert not (tmp_path / "set").exists()


def test_the_same_seed_gives_the_same_bytes_in_another_process_and_order(tmp_path: Path) -> None:
    labels = ["Trumpet", "Snare_drum", "Speech", "Weather"]
    first = synth.write_clips(tmp_path / "a", 3, seed=5, labels=labels)
    code = (
        "import sys; from pathlib import Path; from twophase.audio import synth;"
        "synth.write_clips(Path(sys.argv[1]), 3, 5, sys.argv[2:])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "b", *reversed(labels)], check=True)
    synth.write_clips(tmp_path / "c", 3, seed=6, labels=labels)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    clips = [name for name in a if name.endswith(".flac")]
    assert len(clips) == sum(first.clips.values()) == 12 - first.silent
    assert all(a[name] == b[name] != c[name] for name in clips)


def test_what_is_written_is_a_labelled_folder(tmp_path: Path) -> None:
    told: list[int] = []
    summary = synth.write_clips(tmp_path / "set", 4, 0, ["Flute", "Machine"], told.append)
    rows = list(csv.DictReader((tmp_path / "set/labels.csv").read_text().splitlines()))
    assert list(rows[0]) == ["fname", "label", "manually_verified", "group"]
    assert (tmp_path / "set/wanted.txt").read_text() == "Flute\n"
    assert told == list(summary.clips.values()) == [4, 4]
    for row in rows:
        file = tmp_path / "set" / row["fname"]
        info = soundfile.info(file)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", SAMPLE_RATE, 1)
        number = int(file.stem.rpartition("-")[2])
        np.testing.assert_allclose(decode(file), synth.render(row["label"], 0, number), atol=5e-5)


def test_groups_are_many_enough_for_every_split(tmp_path: Path) -> None:
    synth.write_clips(tmp_path / "set", 60, 1, ["Cowbell", "Glockenspiel", "Speech", "Noise"])
    groups = defaultdict(set)
    for row in csv.DictReader((tmp_path / "set/labels.csv").read_text().splitlines()):
        groups[row["label"]].add(row["group"])
    assert {label: len(found) >= 12 for label, found in groups.items()} == dict.fromkeys(groups, True)


def test_silent_renders_are_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "SILENT", 1e9)
    summary = synth.write_clips(tmp_path / "set", 2, 0, ["Flute"])
    assert summary == synth.SynthSummary({"Flute": 0}, silent=2)
    assert (tmp_path / "set/labels.csv").read_text() == "fname,label,manually_verified,group\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"labels": ["Flute", "Gong"]}, "'Gong'.*Acoustic_guitar"),
        ({"labels": []}, "labels"),
        ({"per_label": 0}, "per_label: 0"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_arguments_that_cannot_be_rendered(tmp_path: Path, arguments: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        synth.write_clips(**{"folder": tmp_path / "set", "per_label": 1, "seed": 0, "labels": ["Flute"]} | arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(TwoPhaseError, match="empty"):
        synth.write_clips(tmp_path, 1, 0, ["Flute"])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@given(st.integers(1, 20_000), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_effects_keep_length_and_type(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pcm = rng.uniform(-1, 1, n).astype(np.float32)
    for out in (
        effects.record(pcm, rng),
        effects.telephone(pcm),
        effects.room(pcm, 0.3, 0.5, rng),
        effects.tilt(pcm, 3.0),
    ):
        assert (out.shape, out.dtype) == (pcm.shape, np.float32)
        assert np.isfinite(out).all()


def test_effects_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    white = effects.noise(SAMPLE_RATE, 0.0, rng)
    power = np.abs(np.fft.rfft(effects.telephone(white))) ** 2
    assert power[4200:].sum() < 1e-3 * power[:3800].sum()
    noisy = effects.add_noise(white, 20.0, -3.0, rng)
    assert np.mean(np.square(noisy - white)) == pytest.approx(0.01, rel=0.01)
    assert np.abs(effects.level(white, -6.0)).max() == pytest.approx(10 ** (-6 / 20), rel=1e-5)
    assert not effects.level(np.zeros(10, np.float32), 0.0).any()
    dull = np.abs(np.fft.rfft(effects.tilt(white, -6.0206))) ** 2
    flat = np.abs(np.fft.rfft(white)) ** 2
    np.testing.assert_allclose(dull[[500, 1000, 2000]] / flat[[500, 1000, 2000]], [4.0, 1.0, 0.25], rtol=0.2)
