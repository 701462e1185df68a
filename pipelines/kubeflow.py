"""Runs of a Kubeflow Pipelines host, through kfp's own client: asked for, watched, scheduled."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.refusals import RunEndedBadly, patiently
from pipelines.submission import Submission
from twophase.errors import TwoPhaseError
from twophase.targets.google_errors import NoAnswer


class Kubeflow:
    """Runs of a Kubeflow Pipelines host, through kfp's own client."""

    def __init__(self, host: str, namespace: str = "") -> None:
        """`host` is the address of the Pipelines API, such as `http://localhost:8888`."""
        self.host, self._namespace = host, namespace or "kubeflow"

    @functools.cached_property
    def _client(self) -> Any:
        import kfp

        try:
            return kfp.Client(host=self.host, namespace=self._namespace)  # asks
        except Exception as error:  # its client raises what its HTTP library does
            raise TwoPhaseError(f"{self.host}: is no Kubeflow Pipelines host that answers ({_short(error)})") from error

    def request(self, submission: Submission, cron: str = "") -> dict[str, Any]:
        """What would be sent: the run, with `cron` the schedule; its experiment by the name that it is looked up by."""
        config = {"parameters": submission.arguments, "pipeline_root": submission.root}
        run = {"display_name": submission.job_id, "pipeline_spec": submission.spec, "runtime_config": config}
        run["experiment"] = submission.experiment or submission.name
        if submission.service_account:
            run["service_account"] = submission.service_account
        return run | ({"trigger": {"cron_schedule": {"cron": cron}}, "max_concurrency": 1} if cron else {})

    def submit(self, submission: Submission) -> str:
        """Ask for a run; return its id."""
        client = self._client
        with tempfile.TemporaryDirectory() as folder, self._in_words("the run"):
            path = Path(folder) / "spec.yaml"
            path.write_text(yaml.safe_dump(submission.spec))
            run = client.create_run_from_pipeline_package(
                str(path),
                arguments=submission.arguments,
                run_name=submission.job_id,
                experiment_name=submission.experiment or submission.name,
                pipeline_root=submission.root or None,
                service_account=submission.service_account or None,
            )
        return str(run.run_id)

    def schedule(self, submission: Submission, cron: str) -> str:
        """Ask for a run at every time of `cron`; return the schedule's id."""
        client = self._client
        with tempfile.TemporaryDirectory() as folder, self._in_words("the schedule"):
            path = Path(folder) / "spec.yaml"
            path.write_text(yaml.safe_dump(submission.spec))
            experiment = client.create_experiment(submission.experiment or submission.name)
            made = client.create_recurring_run(
                experiment_id=experiment.experiment_id,
                job_name=submission.job_id,
                cron_expression=cron,
                max_concurrency=1,
                pipeline_package_path=str(path),
                params=submission.arguments,
                pipeline_root=submission.root or None,
                service_account=submission.service_account or None,
            )
        return str(made.recurring_run_id)

    def wait(self, name: str, on_task: Callable[[str, str], object] = lambda task, state: None) -> None:
        """Watch a run to its end. Raises `RunEndedBadly`. A connection that is lost does not end it (`patiently`)."""

        def look() -> str:
            client = self._client
            with self._in_words("the question for it"):
                return str(client.get_run(name).state)

        state = ""
        while state not in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
            if state:
                time.sleep(5)
            state = patiently(look)
            on_task("run", state)
        if state != "SUCCEEDED":
            raise RunEndedBadly(f"{name}: ended as {state}; look at {self.console(name)}")

    def console(self, name: str) -> str:
        """Where a person looks at the run."""
        return f"{self.host}/#/runs/details/{name}"

    @contextlib.contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as above
            from urllib3.exceptions import HTTPError

            if isinstance(error, HTTPError) or getattr(error, "status", None) in (502, 503, 504):
                raise NoAnswer(f"{self.host}: does not answer ({_short(error)})") from error
            raise TwoPhaseError(f"{self.host}: refused {what} ({_short(error)})") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
