"""Phase 2 as a SavedModel: what TensorFlow Serving and Google's prebuilt images load.

Signatures, each answering `probabilities` float32 [batch, labels + 1], `label` string [batch] and `confidence` [batch]:

    serving_default   audio_bytes  string [batch]                     16-bit mono WAV at 16 kHz; there is no resampler
    pcm               pcm          float32 [batch, n]                 samples at 16 kHz
    images            images       uint8 [batch, windows, frames, mels]   ready-made images of each clip's windows

Cutting, audible windows and pooling are `audio/windows.py` and `release/runtime.py` once more, as graph operations; the
parity check of every export holds them together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twophase.audio.frontend import FRONT_END, SAMPLE_RATE
from twophase.audio.frontend_graph import image_graph
from twophase.audio.windows import AUDIBLE_DB
from twophase.release.runtime import LEAST_WEIGHT

if TYPE_CHECKING:
    import keras


def save(network: "keras.Model", names: Sequence[str], folder: Path) -> None:
    """Write the SavedModel of a classifier network with outputs `names` into an empty folder."""
    import tensorflow as tf

    module = tf.Module()
    module.network = network
    labels = tf.constant(list(names))

    def answers(logits: Any) -> dict[str, Any]:
        probabilities = tf.nn.softmax(logits)
        top = tf.argmax(probabilities, axis=-1)
        return {
            "probabilities": probabilities,
            "label": tf.gather(labels, top),
            "confidence": tf.reduce_max(probabilities, axis=-1),
        }

    def logits_of(images: Any) -> Any:
        return network(images[..., None], training=False)

    def clip(pcm: Any) -> Any:
        windows = _cut(pcm)
        power = tf.reduce_mean(tf.square(windows), axis=1)
        heard = power >= tf.reduce_max(power) * 10.0 ** (-AUDIBLE_DB / 10.0)
        return _pooled(logits_of(image_graph(tf.boolean_mask(windows, heard))))

    def clips(items: Any) -> Any:
        return tf.map_fn(clip, items, fn_output_signature=tf.TensorSpec([len(names)], tf.float32))

    def wav(data: Any) -> Any:
        samples, rate = tf.audio.decode_wav(data, desired_channels=1)
        right = tf.debugging.assert_equal(
            rate, SAMPLE_RATE, "audio_bytes must be a 16-bit mono WAV at 16 kHz; decode and resample other files first"
        )
        with tf.control_dependencies([right]):
            return clip(samples[:, 0])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="audio_bytes")])  # type: ignore[untyped-decorator]
    def from_wav(audio_bytes: Any) -> Any:
        return answers(tf.map_fn(wav, audio_bytes, fn_output_signature=tf.TensorSpec([len(names)], tf.float32)))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="pcm")])  # type: ignore[untyped-decorator]
    def from_pcm(pcm: Any) -> Any:
        return answers(clips(pcm))

    shape = [None, None, *FRONT_END.shape]

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name="images")])  # type: ignore[untyped-decorator]
    def from_images(images: Any) -> Any:
        flat = tf.reshape(tf.cast(images, tf.float32), [-1, *FRONT_END.shape])
        logits = tf.reshape(logits_of(flat), [tf.shape(images)[0], -1, len(names)])
        return answers(_pooled(logits))

    signatures = {"serving_default": from_wav, "pcm": from_pcm, "images": from_images}
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _pooled(logits: Any) -> Any:
    """`release.runtime.pool` before its last softmax, as a graph: float32 [..., windows, k] -> [..., k]."""
    import tensorflow as tf

    weight = 1.0 - tf.nn.softmax(logits)[..., -1:] + LEAST_WEIGHT
    return tf.reduce_sum(weight * logits, axis=-2) / tf.reduce_sum(weight, axis=-2)


def _cut(pcm: Any) -> Any:
    """`audio.windows.cut` as a graph: float32 [n] -> float32 [windows, samples]."""
    import tensorflow as tf

    size, hop = FRONT_END.samples, FRONT_END.samples // 2
    length = tf.shape(pcm)[0]
    beyond = length - size - size // 4
    count = 1 + tf.maximum(0, -tf.math.floordiv(-beyond, hop))
    total = (count - 1) * hop + size
    padded = tf.pad(pcm[:total], [[0, tf.maximum(0, total - length)]])
    return tf.signal.frame(padded, size, hop)
