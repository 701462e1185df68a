"""Pipeline jobs by the official SDK: submit, wait, tasks, failure, cancel, an id that repeats."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import yaml
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from kfp import compiler, dsl

from twophase.local.process import Address, ensure_up, status


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def add(a: int, b: int) -> int:
    if b < 0:
        raise ValueError("b is negative")
    return a + b


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def wait(started: str) -> str:
    import pathlib
    import time

    pathlib.Path(started).touch()
    time.sleep(600)
    return started


@dsl.pipeline(name="sums")
def sums(a: int, b: int = 2) -> int:
    first = add(a=a, b=b)
    return add(a=first.output, b=1).output


@dsl.pipeline(name="waits")
def waits(started: str):
    wait(started=started)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def note(path: str) -> str:
    with open(path, "a") as file:  # noqa: PTH123
        file.write("ran\n")
    return path


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def wait_for(path: str) -> str:
    import pathlib
    import time

    pathlib.Path(path + ".waits").touch()
    while not pathlib.Path(path + ".go").exists():
        time.sleep(0.05)
    return path


@dsl.pipeline(name="cut-off")
def cut_off(path: str):
    wait_for(path=note(path=path).output)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def second_time(path: str) -> str:
    import pathlib

    tried = pathlib.Path(path + ".tried")
    if not tried.exists():
        tried.touch()
        raise OSError("the first time")
    return path


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def kill(word: str) -> str:
    import os

    if word == "b":
        os.kill(os.getpid(), 9)
    return word


@dsl.pipeline(name="one-of-a-loop")
def one_of_a_loop(path: str):
    again = second_time(path=path).set_retry(num_retries=1, backoff_duration="0s")
    with dsl.ParallelFor(["a", "b", "c"]) as word:
        kill(word=word).after(again)


@pytest.fixture
def sdk(platform: Address) -> None:
    connect(platform)


def connect(platform: Address) -> None:
    aiplatform.init(
        project="p",
        location="us-central1",
        api_endpoint=platform.url,
        api_transport="rest",
        credentials=AnonymousCredentials(),
        staging_bucket="gs://twophase",
    )


def job(
    tmp_path: Path, pipeline: object, job_id: str, caching: bool = True, **values: object
) -> aiplatform.PipelineJob:
    spec = tmp_path / f"{job_id}.yaml"
    compiler.Compiler().compile(pipeline, str(spec))
    return aiplatform.PipelineJob(
        display_name=job_id,
        template_path=str(spec),
        job_id=job_id,
        pipeline_root="gs://twophase/root",
        parameter_values=values,
        enable_caching=caching,
    )


@pytest.mark.usefixtures("sdk")
def test_submit_and_wait(tmp_path: Path, home: Path) -> None:
    run = job(tmp_path, sums, "good-1", a=1)
    run.submit()
    run.wait()
    assert run.state.name == "PIPELINE_STATE_SUCCEEDED"
    assert [(t.task_name, t.state.name) for t in run.task_details] == [("add", "SUCCEEDED"), ("add-2", "SUCCEEDED")]
    assert any((home / "buckets" / "twophase" / "root").iterdir())
    with pytest.raises(exceptions.Conflict, match="already exists"):
        job(tmp_path, sums, "good-1", a=1).submit()

    bad = job(tmp_path, sums, "bad-1", a=1, b=-1)
    bad.submit()
    with pytest.raises(RuntimeError, match="add: ValueError: b is negative"):
        bad.wait()
    ((name, state, error),) = [(t.task_name, t.state.name, t.error.message) for t in bad.task_details]
    assert (name, state, error) == ("add", "FAILED", "ValueError: b is negative")
    assert [j.name for j in aiplatform.PipelineJob.list(filter='display_name="good-1"')] == [run.name]
    run.delete()


def test_what_the_pipeline_does_not_take_is_refused_at_once(tmp_path: Path, platform: Address) -> None:
    compiler.Compiler().compile(sums, str(tmp_path / "sums.yaml"))
    spec = yaml.safe_load((tmp_path / "sums.yaml").read_text())

    def refused(spec: object, given: dict[str, object]) -> str:
        body = {"pipelineSpec": spec, "runtimeConfig": {"parameterValues": given}}
        answer = httpx.post(f"{platform.url}/v1/projects/p/locations/us-central1/pipelineJobs", json=body)
        assert answer.status_code == 400
        return str(answer.json()["error"]["message"])

    for given, words in (
        ({"a": 1.5}, "a: 1.5 does not fit; sums takes a NUMBER_INTEGER there"),
        ({"a": "one"}, "a: 'one' does not fit; sums takes a NUMBER_INTEGER there"),
        ({"a": True}, "a: True does not fit; sums takes a NUMBER_INTEGER there"),
        ({"b": 1}, "a: sums needs it, a NUMBER_INTEGER; give it among its arguments"),
        ({"a": 1, "c": 1}, "c: is no parameter of sums; it has a, b"),
    ):
        assert refused(spec, given) == f"pipelineJob.runtimeConfig.parameterValues.{words}"
    for nothing in ({}, {"root": {}}, {"root": 1, "pipelineInfo": {"name": "sums"}}):
        assert "is no compiled pipeline" in refused(nothing, {"a": 1})


@pytest.mark.usefixtures("sdk")
def test_cancel(tmp_path: Path) -> None:
    started = tmp_path / "started"
    run = job(tmp_path, waits, "long-1", started=str(started))
    run.submit()
    while not started.exists():
        assert run.state.name in ("PIPELINE_STATE_PENDING", "PIPELINE_STATE_RUNNING")
    run.cancel()
    assert run.state.name == "PIPELINE_STATE_CANCELLED"
    assert [t.state.name for t in run.task_details] == ["CANCELLED"]


@pytest.mark.usefixtures("sdk")
def test_the_step_that_failed_is_named_in_a_loop_and_one_that_was_tried_again_is_not(tmp_path: Path) -> None:
    run = job(tmp_path, one_of_a_loop, "loop-1", path=str(tmp_path / "path"))
    run.submit()
    with pytest.raises(RuntimeError, match="kill: ended without a message"):
        run.wait()
    assert [(t.task_name, t.state.name) for t in run.task_details] == [("second-time", "SUCCEEDED"), ("kill", "FAILED")]
    assert "the first time" not in str(run.gca_resource.error)


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("caching", [True, False])
def test_a_killed_platform_goes_on_with_what_was_cached(
    tmp_path: Path, home: Path, platform: Address, caching: bool
) -> None:
    path = tmp_path / "notes"
    run = job(tmp_path, cut_off, "cut-off-1", caching, path=str(path))
    run.submit()
    while not Path(f"{path}.waits").exists():
        time.sleep(0.05)
    os.kill(platform.pid, signal.SIGKILL)
    while status(home):
        time.sleep(0.01)
    Path(f"{path}.go").touch()
    connect(ensure_up(home))
    run = aiplatform.PipelineJob.get(run.resource_name)
    if caching:
        run.wait()
    assert run.state.name == ("PIPELINE_STATE_SUCCEEDED" if caching else "PIPELINE_STATE_FAILED")
    assert path.read_text() == "ran\n", "a step that had ended did not run again"
