"""Where sound comes from: standard input or a FIFO of PCM, clip files as if live, or a microphone.

PCM is 16-bit little-endian, mono, 16 kHz: `arecord -q -t raw -f S16_LE -r 16000 -c 1 | twophase device run`.
"""

import stat
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import cast

import numpy as np

from twophase.audio.frontend import SAMPLE_RATE
from twophase.device.clip import PCM
from twophase.errors import TwoPhaseError, UsageError

BLOCK = SAMPLE_RATE // 4
"""Samples that are read at a time, at most: a quarter of a second."""

MICROPHONE = "microphone"


def stream(source: str) -> Iterator[PCM | None]:
    """Blocks of sound, int16 [n]; None where one recording ends and the next begins.

    `source` is `-` for standard input, a FIFO (reopened whenever its writer leaves), `microphone[:DEVICE]`, or a clip
    file or folder of them. Raises `TwoPhaseError` for what is none of these.
    """
    if source == "-":
        yield from _read(cast(BufferedReader, sys.stdin.buffer))
        yield None
        return
    if source.partition(":")[0] == MICROPHONE:
        yield from _microphone(source.partition(":")[2] or None)
        return
    path = Path(source)
    if not path.exists():
        raise UsageError(
            f"source {source}: is not there; -, a FIFO, a clip, a folder of clips or {MICROPHONE} is accepted"
        )
    if stat.S_ISFIFO(path.stat().st_mode):
        while True:
            with path.open("rb") as fifo:
                yield from _read(fifo)
            yield None
    yield from _files(path)


def _read(file: BufferedReader) -> Iterator[PCM]:
    half = b""  # of a sample
    while read := file.read1(2 * BLOCK):
        data = half + read
        half = data[len(data) // 2 * 2 :]
        yield np.frombuffer(data, "<i2", len(data) // 2)


def _files(path: Path) -> Iterator[PCM | None]:
    from twophase.audio.decode import SUFFIXES, BadClip, decode

    paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    for file in paths:
        try:
            pcm = decode(file)
        except BadClip as error:
            if len(paths) == 1:
                raise
            sys.stderr.write(f"left out: {error}\n")
            continue
        samples = np.clip(np.rint(pcm * 32768), -32768, 32767).astype(np.int16)
        for at in range(0, len(samples), BLOCK):
            yield samples[at : at + BLOCK]
        yield None


def _microphone(device: str | None) -> Iterator[PCM]:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: there is no PortAudio library
        raise TwoPhaseError(
            f"the microphone needs the package sounddevice and PortAudio ({error}); or pipe from arecord"
        ) from None
    try:
        with sounddevice.RawInputStream(SAMPLE_RATE, BLOCK, device, channels=1, dtype="int16") as microphone:
            while True:
                data, _ = microphone.read(BLOCK)
                yield np.frombuffer(bytes(data), np.int16)
    except sounddevice.PortAudioError as error:
        raise TwoPhaseError(f"microphone {device or 'default'}: {error}; `python -m sounddevice` lists them") from None
