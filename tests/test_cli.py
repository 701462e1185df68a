"""The command line as people and scripts meet it: exit codes, one message a mistake, a reference that is true."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twophase.cli import app

ROOT = Path(__file__).parents[1]


def twophase(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TWOPHASE_HOME": str(home), "TWOPHASE_API_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "twophase", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One message on standard error that says all these words; nothing else went wrong."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in message, done.stderr


def test_the_reference_is_true() -> None:
    command = [sys.executable, "-m", "typer", "twophase.cli", "utils", "docs", "--name", "twophase"]
    generated = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert (ROOT / "docs/cli.md").read_text().strip() == generated.strip(), "run `make docs` and commit the result"


def test_help_comes_without_heavy_imports() -> None:
    code = (
        "import sys, twophase.cli; "
        "heavy = {'tensorflow', 'keras', 'kfp', 'google.cloud.aiplatform', 'scipy', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("room", ["twophase.serving.server", "twophase.release.runtime", "twophase.device"])
def test_what_runs_on_devices_and_servers_is_light(room: str) -> None:
    code = (
        f"import sys, {room}; "
        "heavy = {'tensorflow', 'keras', 'kfp', 'google.auth', 'boto3', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--on-bad-clip", "maybe"), ("--on-bad-clip maybe", "skip or fail")),
        (("--recall", "0.9", "--cost", "miss=1,call=1"), ("--recall and --cost", "one of them")),
        (("--cost", "miss=1"), ("miss=1", "--cost miss=5,call=0.1")),
        (("--recall", "1.5"), ("recall=1.5", "up to 1")),
        (("--data", "x", "--synth"), ("--data and --synth",)),
        (("--backbone", "foo"), ("--backbone foo", "small or large or mobilenetv2")),
        (("--weights", "imagenet"), ("--weights imagenet", "not for the small network", "mobilenetv2")),
        (("--backbone", "mobilenetv2", "--weights", "/no/such.h5"), ("/no/such.h5: is no file", "imagenet")),
    ],
)
def test_wrong_usage_is_said_before_anything_starts(tmp_path: Path, arguments: tuple[str, ...], words) -> None:
    done = twophase("run", *arguments, "--workdir", str(tmp_path / "w"), home=tmp_path)
    refused(done, 2, *words)
    assert not (tmp_path / "w").exists()


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    assert twophase("run", "--sped", "1", home=tmp_path).returncode == 2


def test_an_empty_folder_fails_the_run_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = twophase("run", "--data", str(tmp_path / "data"), "--workdir", str(tmp_path / "w"), home=tmp_path)
    refused(done, 1, str(tmp_path / "data"), "has no clips", "label/clip")


@pytest.mark.parametrize("command", ["run", "submit"])
def test_data_that_is_nowhere_is_said_before_a_platform_is_started(tmp_path: Path, command: str) -> None:
    home, nowhere = tmp_path / "home", tmp_path / "nowhere"
    line = [command, "--data", str(nowhere), "--home", str(home), "--workdir", str(tmp_path / "w")]
    done = CliRunner().invoke(app, line, env={"TWOPHASE_API_ENDPOINT": ""})
    assert str(done.exception).startswith(f"{nowhere}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_wanted_label_that_does_not_exist_is_a_usage_error(tmp_path: Path, tiny_data: Path) -> None:
    arguments = ("--data", str(tiny_data), "--wanted", "Flute,Kazoo", "--workdir", str(tmp_path / "w"))
    refused(twophase("run", *arguments, home=tmp_path), 2, "Kazoo", "is no label", "Snare_drum")


def test_a_second_run_in_one_workdir_is_told_who_is_at_it(tmp_path: Path) -> None:
    workdir = tmp_path / "w"
    workdir.mkdir()
    with (workdir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        done = twophase("run", "--workdir", str(workdir), home=tmp_path)
    refused(done, 1, str(workdir), "in use by process 4711")


def test_a_platform_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = twophase("models", "list", home=tmp_path)
    refused(done, 1, "http://127.0.0.1:9", "does not answer", "twophase local up")


@pytest.mark.parametrize(
    ("command", "releases"), [(["evaluate"], 1), (["tune"], 1), (["compare"], 2), (["data", "label"], 1)]
)
def test_labelled_clips_may_lie_in_a_bucket(tiny_release: Path, command: list[str], releases: int) -> None:
    url = "memory://bucket/clips"
    done = CliRunner().invoke(app, [*command, *[str(tiny_release)] * releases, "--data", url])
    assert str(done.exception).startswith(f"{url}: has no clips")  # it was asked, and not a folder called memory:


def test_what_is_no_release_is_named(tmp_path: Path) -> None:
    done = twophase("release", "check", str(tmp_path), home=tmp_path)
    refused(done, 1, str(tmp_path), "is no release")


def test_a_full_disk_is_said_and_nothing_half_written_is_taken_for_whole(tmp_path: Path, tiny_data: Path) -> None:
    """A file system of 64 kB: the run ends with one message, and no image set or pack counts as made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        done = twophase("run", "--data", str(tiny_data), "--workdir", str(disk / "w"), home=tmp_path)
        refused(done, 1, "disk is full")
        assert not list((disk / "w").rglob("set.json"))
        assert not list((disk / "w" / "images").rglob("*.jsonl"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
