"""The front end's form for bulk work: window, FFT, power and mel bands in one compiled pass over the processor's cache.

Same images as `frontend.FrontEnd` (1e-4 before rounding, one level after it; a parity test holds them together), at
twice the speed. Numba compiles it once a machine and keeps the result beside this file, or in the user's cache folder.
Servers and devices use the other forms: they see few windows, and Numba costs them half a second and 150 MB.

One vector lane is one frame, so every operation is the same for all frames of a window and nothing is shuffled. Frames
overlap by half: lane j of the second half of the samples is lane j + 1 of the first. Pairs of samples are taken as
complex numbers, transformed by radix-4 Stockham stages, and split into the spectrum of the real signal (W. H. Press et
al., Numerical Recipes, 3rd ed., 12.3; C. Van Loan, Computational Frameworks for the FFT, 1.7).
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from twophase.audio.frontend import FRONT_END, Floats, FrontEnd, Image

_BLOCK = 8  # windows at a time
_VECTOR = 16  # lanes come in multiples of the widest vectors
_PAD = 8  # floats after each row: rows a power of two apart would fall into the same few cache lines

F = TypeVar("F", bound=Callable[..., Any])


class _Tables(NamedTuple):
    """The constants of one front end."""

    hann: Floats
    twiddles: Floats  # [n / 4, 6]: real and imaginary part of w, w^2, w^3
    split: Floats  # [n / 2 + 1, 2]
    bands: NDArray[np.int64]  # [mels + 1]: where each band's bins begin in the next two
    bins: NDArray[np.int64]
    weights: Floats
    first: NDArray[np.int64]  # 4 p
    mirror: NDArray[np.int64]  # n - k


def supports(front_end: FrontEnd) -> bool:
    """Whether frames overlap by half and are 2 * 4^k long: what this form is written for."""
    n = front_end.n_fft // 2
    return front_end.hop == n >= _VECTOR and n.bit_count() == 1 and n.bit_length() % 2 == 1


def images(windows: Floats, front_end: FrontEnd = FRONT_END) -> Image:
    """Images as both models see them: float32 [n, samples] -> uint8 [n, frames, mels].

    Raises `ValueError` for windows that are not finite or not of the front end's length.
    """
    if not supports(front_end):
        return front_end.images(windows)
    out = np.empty((len(windows), *front_end.shape), np.uint8)
    for here, level in _blocks(windows, front_end, 255.0):
        out[here] = np.rint(level, out=level).transpose(0, 2, 1)
    return out


def unit_images(windows: Floats, front_end: FrontEnd = FRONT_END) -> Floats:
    """Images before rounding: float32 [n, samples] -> float32 [n, frames, mels] in [0, 1]."""
    if not supports(front_end):
        return front_end.unit_images(windows)
    out = np.empty((len(windows), *front_end.shape), np.float32)
    for here, unit in _blocks(windows, front_end, 1.0):
        out[here] = unit.transpose(0, 2, 1)
    return out


def _blocks(windows: Floats, front_end: FrontEnd, white: float) -> Iterator[tuple[slice, Floats]]:
    front_end.check(windows[:1])
    x = np.ascontiguousarray(windows, np.float32)
    for i in range(0, len(x), _BLOCK):
        block = x[i : i + _BLOCK]
        front_end.check(block)  # here, where it brings the block into the cache
        mel = np.empty((len(block), front_end.mels, front_end.frames), np.float32)
        _mel_power(block, *_tables(front_end), mel)
        yield slice(i, i + len(block)), front_end.relative(mel, white)


@cache
def _tables(front_end: FrontEnd) -> _Tables:
    n = front_end.n_fft // 2
    w = np.exp(-2j * np.pi * np.arange(n // 4) / n)
    turn = np.exp(-2j * np.pi * np.arange(n // 2 + 1) / front_end.n_fft)
    per_band = front_end.mel_matrix.T
    bands, bins = np.nonzero(per_band)
    return _Tables(
        front_end.hann,
        np.stack([part for power in (w, w**2, w**3) for part in (power.real, power.imag)], 1).astype(np.float32),
        np.stack([turn.real, turn.imag], 1).astype(np.float32),
        np.searchsorted(bands, np.arange(front_end.mels + 1)),
        bins,
        per_band[bands, bins],
        4 * np.arange(n // 4),
        n - np.arange(n // 2 + 1),
    )


def _compiled(function: F) -> F:
    # Fused multiply-add is the one liberty taken; sums keep their order, so a result does not depend on the batch.
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})(function))


@_compiled
def _mel_power(
    x: Floats,
    hann: Floats,
    twiddles: Floats,
    split: Floats,
    bands: NDArray[np.int64],
    bins: NDArray[np.int64],
    weights: Floats,
    first: NDArray[np.int64],
    mirror: NDArray[np.int64],
    out: Floats,
) -> None:
    """Power in each mel band: float32 [windows, samples] -> out, float32 [windows, mels, frames]."""
    n = len(hann) // 2
    _, mels, frames = out.shape
    lanes = -(-frames // _VECTOR) * _VECTOR
    samples = np.zeros((n, lanes + _PAD), np.float32)
    re = np.zeros((2, n, lanes + _PAD), np.float32)
    im = np.zeros((2, n, lanes + _PAD), np.float32)
    power = np.empty((n + 1, lanes + _PAD), np.float32)
    mel = np.empty((mels, lanes), np.float32)
    for window in range(len(x)):
        _lanes(x[window], frames + 1, samples)
        _first_stage(samples, hann, twiddles, first, re[1], im[1], lanes)
        now, length = 1, n // 4
        while length > 1:
            _stage(re[now], im[now], twiddles, re[1 - now], im[1 - now], length, lanes)
            now, length = 1 - now, length // 4
        _real_power(re[now], im[now], split, mirror, power, lanes)
        for band in range(mels):
            for lane in range(lanes):
                mel[band, lane] = 0.0
            for entry in range(bands[band], bands[band + 1]):
                weight, here = weights[entry], bins[entry]
                for lane in range(lanes):
                    mel[band, lane] += weight * power[here, lane]
        out[window] = mel[:, :frames]


@_compiled
def _lanes(x: Floats, halves: int, out: Floats) -> None:
    """Sample i of every half frame side by side; in strips of a cache line, which is what a transpose likes."""
    n = len(out)
    for strip in range(0, n, _VECTOR):
        for half in range(halves):
            for i in range(strip, strip + _VECTOR):
                out[i, half] = x[half * n + i]


@_compiled
def _first_stage(
    x: Floats, hann: Floats, twiddles: Floats, first: NDArray[np.int64], yr: Floats, yi: Floats, lanes: int
) -> None:
    """The Hann window and the first radix-4 stage.

    Rows are looked up in `first`, though they are 4 p: LLVM then checks for overlap inside the loop, where there is
    none, instead of around it, where interleaved rows look as if they overlapped and the slow loop would be taken.
    """
    n = len(x)
    for p in range(n // 4):
        w1r, w1i, w2r, w2i, w3r, w3i = twiddles[p]
        a, b, out = 2 * p, 2 * p + n // 2, first[p]
        h0, h1, h2, h3 = hann[a], hann[a + 1], hann[b], hann[b + 1]
        h4, h5, h6, h7 = hann[a + n], hann[a + n + 1], hann[b + n], hann[b + n + 1]
        for j in range(lanes):
            ar, ai, br, bi = x[a, j] * h0, x[a + 1, j] * h1, x[b, j] * h2, x[b + 1, j] * h3
            cr, ci, dr, di = x[a, j + 1] * h4, x[a + 1, j + 1] * h5, x[b, j + 1] * h6, x[b + 1, j + 1] * h7
            pr, pi, mr, mi = ar + cr, ai + ci, ar - cr, ai - ci
            qr, qi, nr, ni = br + dr, bi + di, bi - di, dr - br
            yr[out, j], yi[out, j] = pr + qr, pi + qi
            tr, ti = mr + nr, mi + ni
            yr[out + 1, j], yi[out + 1, j] = tr * w1r - ti * w1i, tr * w1i + ti * w1r
            tr, ti = pr - qr, pi - qi
            yr[out + 2, j], yi[out + 2, j] = tr * w2r - ti * w2i, tr * w2i + ti * w2r
            tr, ti = mr - nr, mi - ni
            yr[out + 3, j], yi[out + 3, j] = tr * w3r - ti * w3i, tr * w3i + ti * w3r


@_compiled
def _stage(xr: Floats, xi: Floats, twiddles: Floats, yr: Floats, yi: Floats, length: int, lanes: int) -> None:
    """One radix-4 stage over transforms of `length` that are left to do."""
    n = len(xr)
    stride, quarter = n // length, n // 4
    for p in range(length // 4):
        w1r, w1i, w2r, w2i, w3r, w3i = twiddles[p * stride]
        for q in range(stride):
            a = q + stride * p
            b, c, d = a + quarter, a + 2 * quarter, a + 3 * quarter
            o = q + stride * 4 * p
            o1, o2, o3 = o + stride, o + 2 * stride, o + 3 * stride
            for j in range(lanes):
                ar, ai, br, bi = xr[a, j], xi[a, j], xr[b, j], xi[b, j]
                cr, ci, dr, di = xr[c, j], xi[c, j], xr[d, j], xi[d, j]
                pr, pi, mr, mi = ar + cr, ai + ci, ar - cr, ai - ci
                qr, qi, nr, ni = br + dr, bi + di, bi - di, dr - br
                yr[o, j], yi[o, j] = pr + qr, pi + qi
                tr, ti = mr + nr, mi + ni
                yr[o1, j], yi[o1, j] = tr * w1r - ti * w1i, tr * w1i + ti * w1r
                tr, ti = pr - qr, pi - qi
                yr[o2, j], yi[o2, j] = tr * w2r - ti * w2i, tr * w2i + ti * w2r
                tr, ti = mr - nr, mi - ni
                yr[o3, j], yi[o3, j] = tr * w3r - ti * w3i, tr * w3i + ti * w3r


@_compiled
def _real_power(xr: Floats, xi: Floats, split: Floats, mirror: NDArray[np.int64], power: Floats, lanes: int) -> None:
    """|X|^2 of the real signal in bins 0..n, from the transform of its pairs; `mirror` as `first` above."""
    n = len(xr)
    half = np.float32(0.5)
    for k in range(1, n // 2 + 1):
        c, s = split[k]
        m = mirror[k]
        for j in range(lanes):
            er, ei = half * (xr[k, j] + xr[m, j]), half * (xi[k, j] - xi[m, j])
            dr, di = half * (xi[k, j] + xi[m, j]), half * (xr[m, j] - xr[k, j])
            tr, ti = dr * c - di * s, dr * s + di * c
            ur, ui = er + tr, ei + ti
            power[k, j] = ur * ur + ui * ui
            ur, ui = er - tr, ei - ti
            power[m, j] = ur * ur + ui * ui
    for j in range(lanes):
        low, high = xr[0, j] + xi[0, j], xr[0, j] - xi[0, j]
        power[0, j], power[n, j] = low * low, high * high
