"""SavedModels that are no releases, answered by TensorFlow in a process of its own: `... saved_model FOLDER HANDLE`.

The platform itself never imports TensorFlow (seconds, and half a gigabyte). A `SavedModel` starts its process, speaks
to it over a socket, one request at a time, starts it again should it die, and takes it along when nothing refers to
the `SavedModel` any more: the process ends when the other side of the socket does. A batch job's process holds a
`LoadedModel` itself.

Requests and answers are TensorFlow Serving's row format: an instance is a value, or an object of one value an input; so
is a prediction. Bytes are {"b64": ...}. The signature is `serving_default`.
"""

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson
import pybase64

from twophase.errors import TwoPhaseError
from twophase.files import JSON
from twophase.serving.instances import LIMITS
from twophase.serving.predictor import parse
from twophase.serving.refusal import Refusal

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
"""The environment of a process that answers: no chatter of TensorFlow's, and no device of others."""


def require_tensorflow() -> None:
    """Raise `TwoPhaseError` where TensorFlow is not installed."""
    if not importlib.util.find_spec("tensorflow"):
        raise TwoPhaseError(
            "a SavedModel that is no release is answered by TensorFlow, which is not installed here: "
            "pip install 'twophase[train]'"
        )


def refuse_parameters(parameters: Any) -> None:
    """Raise `Refusal` where a request has parameters."""
    if parameters:
        raise Refusal(400, "parameters: mean nothing to a SavedModel that is no release; leave them out")


class SavedModel:
    """A SavedModel that answers. Raises `TwoPhaseError` when it does not load, or TensorFlow is not installed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        require_tensorflow()
        self._thread = ThreadPoolExecutor(1, "saved-model")
        self._start()

    async def answer(self, body: bytes, content_type: bytes = b"application/json") -> list[Any]:
        """The predictions that a request's body asks for. Raises `Refusal`."""
        instances, parameters = parse(body)
        refuse_parameters(parameters)
        if not isinstance(instances, list) or not 1 <= len(instances) <= LIMITS.instances:
            raise Refusal(400, f"instances: send a list of 1 to {LIMITS.instances}")
        said = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, orjson.dumps(instances))
        if "error" in said:
            raise Refusal(400, said["error"])
        predictions: list[Any] = said["predictions"]
        return predictions

    def _ask(self, instances: bytes) -> JSON:
        try:
            self._channel.send_bytes(instances)
            return orjson.loads(self._channel.recv_bytes())
        except (
            EOFError,
            OSError,
        ):  # the process has died; the request may have been what killed it, so it is not repeated
            try:
                self._start()
            except TwoPhaseError as error:
                raise Refusal(503, f"the model's process has ended, and does not start again: {error}") from None
            raise Refusal(503, "the model's process ended during this request and was started again") from None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "twophase.local.saved_model", str(self._folder), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **QUIET},
            )
        threading.Thread(target=process.wait, daemon=True).start()  # leave no zombie
        self._channel = Connection(ours.detach())
        try:
            said = orjson.loads(self._channel.recv_bytes())
        except (EOFError, OSError):
            said = {"error": "this SavedModel does not load: its process ended at once"}
        if "error" in said:
            raise TwoPhaseError(said["error"])


class LoadedModel:
    """A SavedModel in this process. Raises `TwoPhaseError` when it does not load."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        try:
            self._infer = tf.saved_model.load(str(folder)).signatures["serving_default"]
        except Exception as error:  # whatever TensorFlow raises is the model's reason
            raise TwoPhaseError(f"this SavedModel does not load: {_words(error)}") from None
        self._inputs = self._infer.structured_input_signature[1]
        self._constant = tf.constant

    def predict(self, instances: list[Any]) -> list[Any]:
        """One prediction an instance, as JSON has them. Raises `Refusal`."""
        try:
            given = {
                name: self._constant(column, self._inputs[name].dtype)
                for name, column in columns(instances, set(self._inputs)).items()
            }
            return rows({name: value.numpy() for name, value in self._infer(**given).items()}, len(instances))
        except Exception as error:
            raise Refusal(400, f"instances: are not what this model takes: {_words(error)}") from None


def work(folder: Path, channel: Connection) -> None:
    """Load, say so, and answer until the other side is gone."""
    try:
        model = LoadedModel(folder)
    except TwoPhaseError as error:
        channel.send_bytes(orjson.dumps({"error": str(error)}))
        return
    channel.send_bytes(b"{}")
    while True:
        try:
            asked = orjson.loads(channel.recv_bytes())
        except EOFError:
            return
        said: JSON
        try:
            said = {"predictions": model.predict(asked)}
        except Refusal as refusal:
            said = {"error": str(refusal)}
        channel.send_bytes(orjson.dumps(said))


def columns(instances: list[Any], inputs: set[str]) -> dict[str, list[Any]]:
    """One list of values an input, of instances in row format. Raises `ValueError`."""
    named = [isinstance(instance, dict) and set(instance) != {"b64"} for instance in instances]
    if not any(named) and len(inputs) == 1:
        return {next(iter(inputs)): [_value(instance) for instance in instances]}
    for i, instance in enumerate(instances):
        if not named[i] or set(instance) != inputs:
            raise ValueError(f"instance {i} is no object with the inputs {', '.join(sorted(inputs))}")
    return {name: [_value(instance[name]) for instance in instances] for name in inputs}


def rows(outputs: dict[str, Any], count: int) -> list[Any]:
    """One prediction an instance: the value of the one output, or an object of them. Raises `ValueError`."""
    for name, value in outputs.items():
        if value.dtype.kind not in "biufO":
            raise ValueError(f"the output {name} is {value.dtype}, for which JSON has no form")
        if value.ndim == 0 or len(value) != count:
            raise ValueError(
                f"the output {name} has shape {list(value.shape)}, not one row for each of {count} instances"
            )
    values = {
        name: _plain(value.tolist()) if value.dtype.hasobject else value.tolist() for name, value in outputs.items()
    }
    if len(values) == 1:
        return next(iter(values.values()))
    return [{name: value[i] for name, value in values.items()} for i in range(count)]


def _value(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"b64"}:
        return pybase64.b64decode(value["b64"], validate=True)
    if isinstance(value, str):
        return value.encode()  # TensorFlow takes no mixture of text and bytes
    return [_value(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Bytes, for which JSON has no form, as text where they are text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": pybase64.b64encode(value).decode()}


def _words(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]


def main() -> None:
    """Serve the model in the folder that the command names, over the socket that it names."""
    work(Path(sys.argv[1]), Connection(int(sys.argv[2])))


if __name__ == "__main__":
    main()
