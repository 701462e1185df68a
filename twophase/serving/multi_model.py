"""SageMaker's multi-model contract: releases that are loaded, listed, unloaded and asked by name while it runs.

    FOLDER/m-<quoted name>     a symbolic link to the release of that name

The folder is what the worker processes share: loading makes a link, unloading removes it, and each worker loads a
release when it is first asked there, and lets it go when its link has gone or is another. Both are single system calls,
so a process that dies in between leaves either state whole. The folder belongs to one run of the server.
Specification: https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html
"""

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from twophase.errors import TwoPhaseError
from twophase.files import JSON
from twophase.serving.predictor import Predictor
from twophase.serving.refusal import Refusal
from twophase.serving.source import release_in

MOST = 200
"""How many may be loaded at once: about 5 MB each in every worker. SageMaker unloads others when it is told 507."""


class MultiModel:
    """The releases of one server, by name."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty, and removed by whoever made it."""
        self._folder = folder
        self._loaded: dict[str, tuple[Any, Predictor]] = {}

    async def load(self, request: Any) -> JSON:
        """Take up `{"model_name", "url"}`. Raises `Refusal` 409 when the name is taken, 507 when there is no room."""
        if not isinstance(request, dict) or not all(isinstance(request.get(f), str) for f in ("model_name", "url")):
            raise Refusal(400, 'the body is not {"model_name": ..., "url": ...}; url is a folder with a release')
        name, link = request["model_name"], self._link(request["model_name"])
        if link.is_symlink():
            raise Refusal(409, f"{name}: is loaded already; unload it first")
        if len(self.names()) >= MOST:
            raise Refusal(507, f"{name}: {MOST} models are loaded, which is the limit; unload one first")
        try:
            release = release_in(Path(request["url"]))
            await asyncio.to_thread(Predictor, release)
            link.symlink_to(release.absolute())
        except FileExistsError:
            raise Refusal(409, f"{name}: is loaded already; unload it first") from None
        except TwoPhaseError as error:
            raise Refusal(400, f"{name}: {error}") from None
        except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
            raise Refusal(507, f"{name}: {request['url'][:200]!r} cannot be loaded ({error})") from None
        return self.describe(name)

    def names(self) -> list[str]:
        """Those that are loaded."""
        return sorted(unquote(entry.removeprefix("m-")) for entry in os.listdir(self._folder))  # noqa: PTH208

    def describe(self, name: str) -> JSON:
        """A model's name and where it lies. Raises `Refusal` 404."""
        try:
            return {"modelName": name, "modelUrl": str(self._link(name).readlink())}
        except OSError:
            raise _missing(name) from None

    def unload(self, name: str) -> None:
        """Let a model go. Raises `Refusal` 404."""
        try:
            self._link(name).unlink()
        except FileNotFoundError:
            raise _missing(name) from None

    async def predictor(self, name: str) -> Predictor:
        """The model of that name in this process. Raises `Refusal` 404."""
        link = self._link(name)
        try:
            stat = link.lstat()
        except OSError:
            self._loaded.pop(name, None)
            raise _missing(name) from None
        link_is = (stat.st_ino, stat.st_ctime_ns)
        kept = self._loaded.get(name)
        if kept is None or kept[0] != link_is:
            for gone in self._loaded.keys() - set(self.names()):
                del self._loaded[gone]
            try:
                kept = (link_is, await asyncio.to_thread(Predictor, link.resolve()))
            except TwoPhaseError as error:
                raise Refusal(503, f"{name}: can no longer be loaded ({error}); unload it and load it again") from None
            self._loaded[name] = kept
        return kept[1]

    def _link(self, name: str) -> Path:
        entry = f"m-{quote(name, safe='')}"
        if not name or len(entry) > 255:
            raise Refusal(400, f"model_name: {name[:80]!r} is empty or too long for a name")
        return self._folder / entry


def _missing(name: str) -> Refusal:
    return Refusal(404, f"{name}: no such model is loaded; POST /models loads one")
