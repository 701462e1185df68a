"""Keras networks into the LiteRT files of a release.

The gate carries its front end: PCM in, one logit out. Its weights are stored as int8 (dynamic range), and LiteRT rounds
what it multiplies them with to int8, by each input's own range; the front end has no matrix product and so no weight
that a converter could touch. The classifier takes images, because a server makes them faster with SciPy than any graph
does, and stays float.

Variables are frozen before conversion: `from_concrete_functions` around a Keras 3 model leaves them unfrozen otherwise.
"""

from typing import TYPE_CHECKING, Any

from twophase.audio.frontend import FRONT_END
from twophase.audio.frontend_graph import image_graph

if TYPE_CHECKING:
    import keras


def gate_tflite(network: "keras.Model") -> bytes:
    """The exported gate: float32 [1, samples] -> one logit, float32 [1, 1]."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([1, FRONT_END.samples], tf.float32, name="pcm")])  # type: ignore[untyped-decorator]
    def answer(pcm: Any) -> Any:
        return network(image_graph(pcm)[..., None], training=False)

    return _convert(answer, quantise=True)


def classifier_tflite(network: "keras.Model") -> bytes:
    """The exported classifier: uint8 [1, frames, mels] -> logits, float32 [1, labels + 1]."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([1, *FRONT_END.shape], tf.uint8, name="image")])  # type: ignore[untyped-decorator]
    def answer(image: Any) -> Any:
        return network(tf.cast(image, tf.float32)[..., None], training=False)

    return _convert(answer, quantise=False)


def _convert(function: Any, quantise: bool) -> bytes:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantise else []
    converter.exclude_conversion_metadata = True
    return bytes(converter.convert())
