"""The scoring script of Azure ML's batch deployments: hands files of instances to the serving program beside it.

Azure's driver calls `init` once a process and `run` with the paths of some input files, again where a call failed. Each
file is answered line by line into a file of its name, whole or not at all, so that a second attempt changes nothing. It
uses the standard library alone: the driver has an environment of its own, whose NumPy is older than the server's.
"""

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

_PYTHON = os.environ.get("TWOPHASE_PYTHON", "/opt/venv/bin/python")
_address = ""


def init() -> None:
    """Start the serving program on the model that Azure has fetched, and wait until it answers."""
    global _address
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PORT": str(port), "TWOPHASE_WORKERS": "1"}
    server = subprocess.Popen([_PYTHON, "-m", "twophase.serving"], env=environment)
    _address = f"http://127.0.0.1:{port}"
    while True:
        if server.poll() is not None:
            raise RuntimeError(f"the serving program ended with {server.returncode}; its last words are in this log")
        try:
            urlopen(f"{_address}/ping", timeout=10).close()
            return
        except URLError:
            time.sleep(0.1)


def run(mini_batch: list[str]) -> list[str]:
    """Answer files of JSON lines; the paths that are done."""
    for name in mini_batch:
        answers = b"".join(map(_answer, Path(name).read_bytes().splitlines()))
        output = Path(os.environ["AZUREML_BI_OUTPUT_PATH"]) / Path(name).name
        aside = output.with_suffix(f".{os.getpid()}.part")
        aside.write_bytes(answers)
        aside.replace(output)
    return mini_batch


def _answer(line: bytes) -> bytes:
    """A prediction or an error as one line; raises where the server itself failed, so that Azure tries again."""
    request = Request(f"{_address}/invocations", data=line, headers={"content-type": "application/jsonlines"})
    try:
        with urlopen(request, timeout=300) as answer:
            return bytes(answer.read())
    except HTTPError as error:
        if error.code >= 500:
            raise
        return json.dumps(json.loads(error.read())).encode() + b"\n"
