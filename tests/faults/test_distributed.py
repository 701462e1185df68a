"""Two workers on loopback learn what one does, also when one is killed on the way. `make test-faults`."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.training.fitting import ended, learned, start, start_workers

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif("SEEDS" not in os.environ, reason="a minute each: make test-faults"),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize(("network", "near"), [("plain", 1e-3), ("dry", 1e-3), ("gate", 0.1)])
def test_two_workers_learn_what_one_does(tmp_path: Path, network: str, near: float) -> None:
    """But for rounding, which grows from step to step, and for dropout, whose masks are others."""
    alone = learned(start(tmp_path / "1", network))
    first, second = map(learned, start_workers(tmp_path / "2", network, 2))
    assert first == second, "both end with the same network"
    assert first["loss"] == pytest.approx(alone["loss"], abs=near)
    assert first["val_loss"] == pytest.approx(alone["val_loss"], abs=near)
    if network != "gate":
        assert first["weights"] == pytest.approx(alone["weights"], rel=1e-4)
    assert first["loss"][-1] < 0.6 * first["loss"][0]


@pytest.mark.parametrize(("network", "near"), [("dry", 1e-2), ("gate", 0.1)])
def test_two_devices_of_one_machine_learn_what_one_does(tmp_path: Path, network: str, near: float) -> None:
    """As above; besides, of a last batch of 13 one image is seen twice."""
    one, two = (learned(start(tmp_path / str(devices), network, devices)) for devices in (1, 2))
    assert two["loss"] == pytest.approx(one["loss"], abs=near)
    assert two["val_loss"] == pytest.approx(one["val_loss"], abs=near)


def test_a_fit_on_two_devices_goes_on_after_it_was_killed_and_ends_where_it_would_have(tmp_path: Path) -> None:
    undisturbed = learned(start(tmp_path / "undisturbed", "gate", 2))
    assert ended(start(tmp_path / "killed", "gate", 2, kill_at=2)) == -signal.SIGKILL
    again = learned(start(tmp_path / "killed", "gate", 2))
    assert again.pop("first_epoch") > undisturbed.pop("first_epoch"), "what was kept is not done again"
    assert again == undisturbed


def test_workers_go_on_after_one_was_killed_and_end_where_they_would_have(tmp_path: Path) -> None:
    """The others end with an error; all are started again on empty disks, as a service does."""
    undisturbed = [*map(learned, start_workers(tmp_path / "undisturbed", "gate", 2))]
    first, second = map(ended, start_workers(tmp_path / "killed", "gate", 2, kill_at=2))
    assert first > 0, "it does not wait for ever, nor write a model alone"
    assert second == -signal.SIGKILL
    again = [*map(learned, start_workers(tmp_path / "killed", "gate", 2))]
    for ours, theirs in zip(again, undisturbed, strict=True):
        assert ours.pop("first_epoch") > theirs.pop("first_epoch"), "what was kept is not done again"
    assert again == undisturbed
    assert not (tmp_path / "killed" / "model.fits").exists()


def test_workers_whose_disks_hold_different_epochs_go_on_where_the_first_one_stands(tmp_path: Path) -> None:
    """Each keeps epochs by its own clock, and finds them again: nothing on a disk may refuse the others for ever."""
    undisturbed = [*map(learned, start_workers(tmp_path / "undisturbed", "plain", 2))]
    killed = tmp_path / "killed"
    _, second = map(ended, start_workers(killed, "plain", 2, kill_at=3, disks=True))
    assert second == -signal.SIGKILL
    kept = [len(json.loads((killed / f"disk{i}/fits/key/progress.json").read_text())["loss"]) for i in (0, 1)]
    assert kept[0] >= 3 > kept[1] == 1
    again = [*map(learned, start_workers(killed, "plain", 2, disks=True))]
    assert [found.pop("first_epoch") for found in (*again, *undisturbed)] == [kept[0] + 1, kept[0] + 1, 1, 1]
    assert again == undisturbed
