"""The verdict on two releases rests on the same clips, says what it rests on, and is no accident of few groups."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.standin import LABELS, make
from twophase.audio.clips import Clip
from twophase.audio.frontend import FrontEnd
from twophase.errors import TwoPhaseError
from twophase.files import digest
from twophase.release import heard, manifest
from twophase.release.manifest import EXTRA, NONE, OperatingPoint
from twophase.training.answers import Answers
from twophase.training.compare import Side, Verdict, against_champion, compare
from twophase.training.judge import Judgement

NAMES = ("Flute", "Oboe", NONE)


def answered(right: list[bool], labels: list[str], names: tuple[str, ...] = NAMES, groups: int = 10**9) -> Answers:
    """Answers that are right or wrong as told: everything passes the gate, and wrong is the next name."""
    clips = tuple(Clip(f"{i:064x}", "", f"{i}.wav", label, f"g{i % groups}", "test") for i, label in enumerate(labels))
    given = Answers(clips, names, np.ones(len(clips), np.float32), np.empty(0), np.ones(len(clips), np.int64))
    named = (given.truth + ~np.array(right, bool)) % len(names)
    return dataclasses.replace(given, probabilities=np.eye(len(names), dtype=np.float32)[named])


def verdict(new: Answers, old: Answers) -> Verdict:
    return compare(Side("r-new", new, 0.0), Side("r-old", old, 0.0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=8, max_size=40), st.randoms(use_true_random=False))
def test_the_order_of_the_clips_and_those_that_one_side_lacks_change_nothing(pairs, random) -> None:
    labels = ["Flute"] * len(pairs)
    new, old = (answered([p[k] for p in pairs], labels) for k in (0, 1))
    lost = random.randrange(len(pairs))
    kept = np.array([i for i in range(len(pairs)) if i != lost], np.int64)
    shuffled = np.array(random.sample(range(len(pairs)), len(pairs)), np.int64)
    assert verdict(new.at(kept), old.at(shuffled)) == verdict(new.at(kept), old.at(kept))
    assert verdict(new.at(kept), old).name == verdict(new, old.at(kept)).name


def test_every_label_has_its_own_verdict_and_the_words_say_so() -> None:
    labels = ["Flute"] * 20 + ["Oboe"] * 20 + ["Rain"] * 20
    found = verdict(
        answered([True] * 20 + [False] * 20 + [True] * 20, labels), answered([False] * 20 + [True] * 40, labels)
    )
    assert found.name == "not shown"
    assert found.labels == {"Flute": "better", "Oboe": "worse", NONE: "not shown"}
    assert "better at Flute, worse at Oboe, nothing is shown for 1 of 3" in found.words


@pytest.mark.parametrize(("groups", "name"), [(1, "not shown"), (3, "not shown"), (5, "not shown"), (6, "better")])
def test_a_few_groups_that_all_agree_show_nothing(groups: int, name: str) -> None:
    labels = ["Flute"] * 60
    found = verdict(answered([True] * 60, labels, groups=groups), answered([False] * 60, labels, groups=groups))
    assert found.name == name
    assert ("are needed" in found.words) == (name == "not shown")


def test_a_label_that_one_side_lacks_is_for_that_side_to_stop() -> None:
    labels = ["Flute"] * 10 + ["Oboe"] * 10
    found = verdict(answered([True] * 20, labels), answered([True] * 20, labels, ("Flute", NONE)))
    assert found.labels.keys() == {"Flute"}
    assert "+0.0 points" in found.words


def test_nothing_in_common_is_said() -> None:
    given = answered([True, True], ["Flute", "Flute"])
    found = verdict(given.at(np.array([0])), given.at(np.array([1])))
    assert found.name == "not shown"
    assert "no clip in common" in found.words


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = make(tmp_path_factory.mktemp("champion") / "r", seed=1)
    heard.write(release, ())
    return sealed(release)


def sealed(release: Path, **changes: object) -> Path:
    """Write the manifest again over what the folder holds now, with some fields changed."""
    found = manifest.read(release)
    manifest.write(release, dataclasses.replace(found, digests=manifest.files_of(release), **changes))
    return release


def another(champion: Path, folder: Path, **changes: object) -> Path:
    return sealed(Path(shutil.copytree(champion, folder)), id="r-0123456789ab", **changes)


def judged(folder: Path, names: tuple[str, ...] = (*LABELS, NONE)) -> Judgement:
    """A challenger's judgement: right about twelve clips of noise."""
    rng = np.random.default_rng(0)
    given = answered([True] * 12, [LABELS[0]] * 12, names)
    clips = []
    for clip in given.clips:
        path = folder / clip.name
        soundfile.write(path, rng.normal(0, 0.1, 16_000), 16_000)
        clips.append(dataclasses.replace(clip, path=str(path), sha256=digest(path)))
    found = Judgement(folder, OperatingPoint(0.0, "test", 1.0, 1.0, 0.5), {}, {})
    found.__dict__["test"] = dataclasses.replace(given, clips=tuple(clips))
    return found


def test_more_labels_and_another_front_end_are_asked_all_the_same(champion: Path, tmp_path: Path) -> None:
    more = (*LABELS, "zither")
    challenger = another(champion, tmp_path / "more", labels=more)
    found = against_champion(judged(tmp_path, (*more, NONE)), challenger, champion)
    assert found.labels.keys() == {LABELS[0]}
    other = FrontEnd(floor=1e-4)
    told = {**dataclasses.asdict(other), "fingerprint": other.fingerprint}
    old = another(champion, tmp_path / "floor", front_end=told)
    assert "on 12 clips" in against_champion(judged(tmp_path), champion, old).words


def test_a_front_end_that_cannot_be_made_here_shows_nothing(champion: Path, tmp_path: Path) -> None:
    for name, told in (("a", {"fingerprint": "fe-000000000000"}), ("b", {"fingerprint": "fe-0", "gammatones": 9})):
        found = against_champion(judged(tmp_path), champion, another(champion, tmp_path / name, front_end=told))
        assert found.name == "not shown"
        assert told["fingerprint"] in found.words


def test_a_live_release_for_another_task_is_no_champion(champion: Path, tmp_path: Path) -> None:
    with pytest.raises(TwoPhaseError, match="oboe"):
        against_champion(judged(tmp_path), another(champion, tmp_path / "less", labels=LABELS[:2]), champion)


@pytest.mark.parametrize("damage", ["gone", "cut", "never there"])
def test_a_champion_that_is_not_whole_is_named(champion: Path, tmp_path: Path, damage: str) -> None:
    copy = another(champion, tmp_path / "copy")
    path = copy / EXTRA / "heard.csv"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5])
    else:
        path.unlink()
    if damage == "never there":
        sealed(copy)
    with pytest.raises(TwoPhaseError, match=r"heard\.csv"):
        against_champion(judged(tmp_path), champion, copy)


@pytest.mark.parametrize("text", ["", "clip,group\n", "clip,group,split\nabc\n"])
def test_a_list_of_heard_clips_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / EXTRA).mkdir()
    (tmp_path / heard.HEARD).write_text(text)
    with pytest.raises(TwoPhaseError, match=r"heard\.csv"):
        heard.read(tmp_path)
