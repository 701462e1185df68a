"""What a request may hold as one instance, and how it becomes the images that the classifier looks at.

    {"audio_bytes": {"b64": ...}}   a WAV, FLAC, Ogg or MP3 file, any rate and channel count
    {"b64": ...}                    the same, as Vertex and TensorFlow Serving write a single binary input
    {"pcm": [...]}                  mono samples at 16 kHz in [-1, 1]
    {"images": {"b64": ...}}        ready images, raw uint8 [n, frames, mels]
    [...]                           nested lists: one dimension is PCM, two are an image, three are images

Protocols that carry tensors hand over what those hold: bytes of an audio file, float32 PCM, or uint8 images.

Nothing here trusts the sender: every length is bounded before memory is spent on it, and each refusal says what would
be accepted.
"""

import struct
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import Any

import numpy as np
import pybase64

from twophase.audio.decode import MAX_CLIP_S, BadClip, decode
from twophase.audio.frontend import FRONT_END, SAMPLE_RATE, Floats, Image
from twophase.audio.windows import audible, cut
from twophase.serving.refusal import Refusal

ACCEPTED = (
    'an instance is {"audio_bytes": {"b64": ...}}, {"b64": ...}, {"pcm": [...]}, {"images": {"b64": ...}} '
    "or nested lists of PCM or images"
)


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for; the defaults are Vertex's for a dedicated endpoint where it has any."""

    body_bytes: int = 10_000_000
    instances: int = 1_000
    windows: int = 5_000
    """About two seconds of one core."""


LIMITS = Limits()


def images_of(instance: Any, name: str) -> Image:
    """The images of one instance, uint8 [n >= 1, frames, mels]; `name` is how errors call it. Raises `Refusal`."""
    if isinstance(instance, bytes):
        return _audio(instance, name)
    if isinstance(instance, np.ndarray):
        return _pcm(instance, name) if instance.ndim == 1 else _raw_images(instance.tobytes(), name)
    if isinstance(instance, list):
        return _nested(instance, name)
    if not isinstance(instance, dict) or len(instance) != 1:
        raise Refusal(400, f"{name}: is {_kind(instance)}; {ACCEPTED}")
    ((field, value),) = instance.items()
    match field:
        case "audio_bytes":
            return _audio(_binary(value, f"{name}.audio_bytes"), name)
        case "b64":
            return _audio(_binary(instance, name), name)
        case "pcm":
            return _pcm(array(value, np.float32, f"{name}.pcm"), f"{name}.pcm")
        case "images":
            return _raw_images(_binary(value, f"{name}.images"), f"{name}.images")
        case _:
            raise Refusal(400, f"{name}: has the field {field!r}; {ACCEPTED}")


def audio_images(data: bytes, name: str) -> Image:
    """The images of one audio file's bytes, uint8 [n >= 1, frames, mels]. Raises `Refusal`."""
    return _audio(data, name)


def _audio(data: bytes, name: str) -> Image:
    pcm = _plain_wav(data)
    if pcm is None:
        try:
            pcm = decode(data, name)
        except BadClip as error:
            raise Refusal(400, str(error)) from None
    return _windows(pcm)


_PLAIN = struct.Struct("<4sI8sIHHIIHH4sI")


def _plain_wav(data: bytes) -> Floats | None:
    """The samples of the WAV that devices send, 16-bit mono at 16 kHz, in a tenth of the decoder's time; else None."""
    if len(data) <= _PLAIN.size or len(data) > _PLAIN.size + 2 * SAMPLE_RATE * MAX_CLIP_S:
        return None
    riff, _, wave, fmt_size, coding, channels, rate, _, _, bits, tag, size = _PLAIN.unpack_from(data)
    plain = (riff, wave, fmt_size, tag) == (b"RIFF", b"WAVEfmt ", 16, b"data")
    if not plain or (coding, channels, rate, bits) != (1, 1, SAMPLE_RATE, 16) or size != len(data) - _PLAIN.size:
        return None
    if size % 2:
        return None
    return np.frombuffer(data, "<i2", offset=_PLAIN.size).astype(np.float32) * np.float32(1 / 32768)


def _windows(pcm: Floats) -> Image:
    windows = cut(pcm)
    if len(windows) > 1:  # one alone is the loudest
        windows = windows[audible(windows)]
    return FRONT_END.images(windows)


def _pcm(pcm: Floats, name: str) -> Image:
    if pcm.ndim != 1 or not 0 < len(pcm) <= SAMPLE_RATE * MAX_CLIP_S:
        raise Refusal(
            400,
            f"{name}: has shape {list(pcm.shape)}; PCM is one list of 1 to {SAMPLE_RATE * MAX_CLIP_S} samples",
        )
    if not np.isfinite(pcm).all():
        raise Refusal(400, f"{name}: has NaN or infinite samples; samples are finite, in [-1, 1]")
    return _windows(pcm)


def _raw_images(data: bytes, name: str) -> Image:
    frames, mels = FRONT_END.shape
    if not data or len(data) % (frames * mels):
        raise Refusal(400, f"{name}: holds {len(data)} bytes; images are n * {frames} * {mels} uint8 values, n >= 1")
    return np.frombuffer(data, np.uint8).reshape(-1, frames, mels)


def _nested(value: list[Any], name: str) -> Image:
    depth, inner = 1, value
    while inner and isinstance(inner[0], list) and depth < 4:
        depth, inner = depth + 1, inner[0]
    if depth == 1:
        return _pcm(array(value, np.float32, name), name)
    pixels = array(value, np.int64, name)
    if pixels.ndim not in (2, 3) or not len(pixels) or pixels.shape[-2:] != FRONT_END.shape:
        raise Refusal(
            400, f"{name}: has shape {list(pixels.shape)}; images are [frames, mels] = {list(FRONT_END.shape)}"
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise Refusal(400, f"{name}: has values outside 0..255; images are uint8")
    return pixels.astype(np.uint8).reshape(-1, *FRONT_END.shape)


def array(value: Any, dtype: Any, name: str) -> "np.ndarray[Any, Any]":
    """Nested lists of numbers as an array; `name` is how errors call it. Raises `Refusal`."""
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, which is refused as such
            found = np.asarray(value)
            if found.dtype.kind not in "iuf" or (found.dtype.kind == "f" and dtype is np.int64):
                raise TypeError(f"{found.dtype} values")
            return found.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refusal(400, f"{name}: is no array of numbers ({error}); {ACCEPTED}") from None


def base64_bytes(text: Any, name: str) -> bytes:
    """What a base64 string stands for; `name` is how errors call it. Raises `Refusal`."""
    if not isinstance(text, str):
        raise Refusal(400, f"{name}: is {_kind(text)}; binary data is a base64 string")
    try:
        return pybase64.b64decode(text, validate=True)
    except (Base64Error, ValueError) as error:
        raise Refusal(400, f"{name}: is no base64 ({error}); use the standard alphabet with padding") from None


def _binary(value: Any, name: str) -> bytes:
    if not isinstance(value, dict) or set(value) != {"b64"}:
        raise Refusal(400, f'{name}: is {_kind(value)}; binary data is {{"b64": "<base64>"}}')
    return base64_bytes(value["b64"], f"{name}.b64")


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with the fields {sorted(map(str, value))[:5]}"
    return {str: "a string", int: "a number", float: "a number", bool: "a boolean", list: "a list"}.get(
        type(value), "null"
    )
