"""The front end as TensorFlow operations: what both exported models carry inside.

Equal to `FrontEnd.unit_images` to 1e-4 before rounding and to one level after it (tests/audio/test_frontend.py), in
TensorFlow and in LiteRT. Written for small files and for quantisation:

- Neighbouring half-frames are concatenated instead of gathered, which needs no index table (a frame is two hops).
- Each FFT bin lies between two mel centres, so its power goes to at most two bands. Two weights a bin and a segment sum
  take 3 kB where the dense matrix takes 66 kB; and no matrix product means that no weight-quantising converter can
  touch the front end (int8 mel bands cost a gate half of its accuracy without any error).
- `maximum(x, floor)` rather than `x + floor`: an addition before the logarithm is what quantisers break.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio.frontend import FRONT_END, Floats, FrontEnd

if TYPE_CHECKING:
    import tensorflow as tf


def image_graph(pcm: "tf.Tensor", front_end: FrontEnd = FRONT_END) -> "tf.Tensor":
    """Windows to images on the [0, 255] scale, rounded: float32 [n, samples] -> float32 [n, frames, mels]."""
    import tensorflow as tf

    return tf.round(unit_image_graph(pcm, front_end) * 255.0)


def unit_image_graph(pcm: "tf.Tensor", front_end: FrontEnd = FRONT_END) -> "tf.Tensor":
    """Images before rounding: float32 [n, samples] -> float32 [n, frames, mels] in [0, 1]."""
    import tensorflow as tf

    f = front_end
    if f.n_fft != 2 * f.hop:
        raise ValueError(f"the graph form needs n_fft == 2 * hop, not n_fft={f.n_fft}, hop={f.hop}")
    halves = tf.reshape(pcm, [-1, f.frames + 1, f.hop])
    framed = tf.concat([halves[:, :-1], halves[:, 1:]], axis=2) * f.hann
    spectrum = tf.signal.rfft(framed)
    power = tf.square(tf.math.real(spectrum)) + tf.square(tf.math.imag(spectrum))
    mel = _bands(power, f)
    log = tf.math.log(tf.maximum(mel, f.floor))
    log -= tf.reduce_max(log, axis=[1, 2], keepdims=True)
    return tf.maximum(log * (1.0 / f.range_ln) + 1.0, 0.0)


def _bands(power: "tf.Tensor", f: FrontEnd) -> Any:
    """float32 [n, frames, bins] -> [n, frames, mels] through the two weights of each bin."""
    import tensorflow as tf

    segment, falling, rising = _two_weights(f)
    flat = tf.transpose(tf.reshape(power, [-1, len(segment)]))  # segment sums run over the first axis
    down = tf.math.segment_sum(flat * falling[:, None], segment)[1:]
    up = tf.math.segment_sum(flat * rising[:, None], segment)[:-1]
    return tf.reshape(tf.transpose(down + up), [-1, *f.shape])


def _two_weights(f: FrontEnd) -> "tuple[NDArray[np.int32], Floats, Floats]":
    """For each bin its segment s, its weight in band s - 1 (whose slope falls there) and in band s (rises)."""
    peaks = f.band_edges_hz[1:-1]
    segment = np.searchsorted(peaks, f.bins_hz, side="right").astype(np.int32)
    padded = np.pad(f.mel_matrix, ((0, 0), (1, 1)))
    rows = np.arange(len(segment))
    return segment, padded[rows, segment], padded[rows, segment + 1]
