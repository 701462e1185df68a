"""A release that answers: loaded only when it is whole and reproduces its golden windows.

A `Predictor` belongs to one event loop and runs the model in it: a hop to a thread costs more than the model does. A
request of many clips gives way to other requests after each clip, so that none waits for more than one.
"""

import asyncio
from pathlib import Path
from typing import Any

import orjson

from twophase.audio.frontend import FRONT_END, Image
from twophase.release.golden import replay
from twophase.release.manifest import NONE, verify
from twophase.release.runtime import Pair
from twophase.serving.instances import LIMITS, Limits, audio_images, images_of
from twophase.serving.refusal import Refusal


class Predictor:
    """One release in memory. Raises `ReleaseError` when it is not whole, not for here, or answers differently."""

    def __init__(self, release: Path, limits: Limits = LIMITS) -> None:
        verify(release)
        pair = Pair(release)
        replay(pair, release)
        self.manifest = pair.manifest
        self.labels = (*pair.manifest.labels, NONE)
        self._classifier = pair.classifier
        self._limits = limits

    @property
    def id(self) -> str:
        """The release's id, `r-<12 hex>`."""
        return self.manifest.id

    def predict_images(self, images: Image) -> dict[str, Any]:
        """One prediction from a clip's images, uint8 [n >= 1, frames, mels].

        Its label is none of these where the best one is less probable than the release's rejection; its confidence is
        the probability of the label that it gives.
        """
        p = self._classifier.image_probabilities(images)
        best = int(p.argmax())
        values = p.tolist()
        if values[best] < self.manifest.operating_point.rejection:
            best = -1
        return {
            "label": self.labels[best],
            "confidence": values[best],
            "probabilities": dict(zip(self.labels, values, strict=True)),
            "windows": len(images),
            "release": self.id,
        }

    async def predict(self, instances: Any, parameters: Any = None) -> list[dict[str, Any]]:
        """One prediction an instance, in order. Raises `Refusal`."""
        self.check_parameters(parameters)
        limits = self._limits
        if not isinstance(instances, list) or not 1 <= len(instances) <= limits.instances:
            found = f"holds {len(instances)}" if isinstance(instances, list) else "is no list"
            raise Refusal(
                400, f"instances: {found}; send a list of 1 to {limits.instances}, and more than that as a batch job"
            )
        predictions, windows = [], 0
        for i, instance in enumerate(instances):
            if i:
                await asyncio.sleep(0)
            images = images_of(instance, f"instances[{i}]")
            windows += len(images)
            if windows > limits.windows:
                raise Refusal(
                    400, f"instances: hold over {limits.windows} windows of sound; send fewer or shorter clips"
                )
            predictions.append(self.predict_images(images))
        return predictions

    async def answer(self, body: bytes, content_type: bytes = b"application/json") -> list[dict[str, Any]]:
        """The predictions that a request's body asks for: JSON, or one audio file as it is. Raises `Refusal`."""
        if content_type.startswith((b"audio/", b"application/octet-stream")):
            return [self.predict_images(audio_images(body, "body"))]
        return await self.predict(*parse(body))

    def check_parameters(self, parameters: Any) -> None:
        """Refuse a request that expects another release or front end, and parameters that mean nothing here."""
        if parameters is None:
            return
        if not isinstance(parameters, dict):
            raise Refusal(400, 'parameters: is no object; accepted are {"release": ..., "front_end": ...}')
        here = {"release": self.id, "front_end": FRONT_END.fingerprint}
        for name, expected in parameters.items():
            if name not in here:
                raise Refusal(400, f"parameters.{name}: means nothing here; accepted are release and front_end")
            if expected != here[name]:
                raise Refusal(
                    409,
                    f"parameters.{name}: the request expects {expected!r}, this endpoint has {here[name]!r}; "
                    "fetch the release that is live, or leave the parameter out",
                    "FAILED_PRECONDITION",
                )


def parse(body: bytes) -> tuple[Any, Any]:
    """`instances` and `parameters` of a request's JSON. Raises `Refusal`."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f'the body is no JSON ({error}); send {{"instances": [...]}}') from None
    if not isinstance(request, dict) or "instances" not in request:
        raise Refusal(400, 'the body has no instances; send {"instances": [...]}, and parameters if you like')
    return request["instances"], request.get("parameters")
