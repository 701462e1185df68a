"""The two networks: image in, logits out.

Both take images on the [0, 255] scale, float32 [n, frames, mels, 1], and give logits, not probabilities: a quantised
sigmoid has few distinct values, and a threshold needs many.

- Few wide convolutions rather than many narrow ones: at equal accuracy they make the smaller file, train seven times
  faster on a CPU than depthwise ones, and run as fast.
- What the convolutions find is averaged over time alone. A sound may start at any time, but where in the spectrum its
  energy lies is what it sounds like: averaging over frequency too costs a tenth of the classifier's accuracy.
- Batch normalisation has momentum 0.9: Keras's default of 0.99 does not converge in a small set's few hundred steps.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twophase.audio.frontend import FRONT_END
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import replacing

if TYPE_CHECKING:
    import keras

BACKBONES = ("small", "large", "mobilenetv2")

_WIDTHS = {
    "gate": ((16, 5, 2), (32, 3, 2), (48, 3, 2), (48, 3, 2)),
    "small": ((32, 3, 2), (64, 3, 2), (128, 3, 2), (128, 3, 1)),
    "large": ((48, 3, 2), (96, 3, 2), (192, 3, 2), (256, 3, 1)),
}
"""Filters, kernel and stride over frequency of each convolution."""

STARTS = {name: Path(__file__).parent / f"start-{name}.npz" for name in _WIDTHS}
"""The weights that training starts from; made by pretrain.py."""


def gate(outputs: int, weights: str | None = None) -> "keras.Model":
    """About 40,000 parameters; `outputs` logits. `weights` are None for those of `STARTS`, or `random`."""
    return _convolutions("gate", "gate", outputs, 0.1, weights)


def wanted_or_not(network: "keras.Model") -> "keras.Model":
    """A trained gate with one logit: the log odds of any of its outputs but the last against the last.

    The last output is taken off the others in the weights: the file is 2 kB smaller than with `logsumexp`.
    """
    from keras import Model, layers, ops

    last = network.get_layer("logits")
    kernel, bias = last.get_weights()
    against = layers.Dense(len(bias) - 1, name="logits")
    odds = ops.log(ops.sum(ops.exp(against(last.input)), axis=1, keepdims=True))
    against.set_weights([kernel[:, :-1] - kernel[:, -1:], bias[:-1] - bias[-1:]])
    return Model(network.input, odds, name=network.name)


def classifier(outputs: int, backbone: str = "small", weights: str | None = None) -> "keras.Model":
    """About 250,000 parameters (`small`), 670,000 (`large`), or MobileNetV2; `outputs` logits.

    `weights`: None for what the backbone comes with (MobileNetV2: nothing, the others: `STARTS`), `random`, or for
    `mobilenetv2` alone `imagenet` or a `.weights.h5` file of it.
    """
    if backbone in STARTS and backbone != "gate":
        if weights not in (None, "random"):
            raise UsageError(f"--weights {weights}: is not for the {backbone} network; leave it out, or give random")
        return _convolutions("classifier", backbone, outputs, 0.2, weights)
    if backbone == "mobilenetv2":
        return _mobilenetv2(outputs, None if weights == "random" else weights)
    raise UsageError(f"--backbone {backbone}: is not known; {', '.join(BACKBONES)} are")


def keep_start(network: "keras.Model", file: Path) -> None:
    """Keep what a network has learned below its last layer as float16 arrays, named layer/number."""
    arrays: dict[str, Any] = {
        f"{layer.name}/{i}": np.asarray(weight, np.float16)
        for layer in network.layers[:-1]
        for i, weight in enumerate(layer.get_weights())
        if weight.dtype == np.float32
    }
    with replacing(file) as out:
        np.savez_compressed(out, front_end=np.array(FRONT_END.fingerprint), **arrays)


def start(network: "keras.Model", file: Path) -> None:
    """Give a network, below its last layer, the weights that `pretrain.py` found on rendered sounds.

    Raises `TwoPhaseError` when they were learned from other images than this program's front end makes.
    """
    with np.load(file) as kept:
        if str(kept["front_end"]) != FRONT_END.fingerprint:
            raise TwoPhaseError(
                f"the pretrained {network.name} knows images of front end {kept['front_end']}, this program makes "
                f"those of {FRONT_END.fingerprint}; run python -m twophase.training.pretrain"
            )
        for layer in network.layers[:-1]:
            weights = layer.get_weights()
            for i in range(len(weights)):
                if f"{layer.name}/{i}" in kept:
                    weights[i] = kept[f"{layer.name}/{i}"].astype(np.float32)
            layer.set_weights(weights)


def _convolutions(name: str, widths: str, outputs: int, dropout: float, weights: str | None) -> "keras.Model":
    """The convolutions of `_WIDTHS`, each of which halves time, and one dense layer; started unless `weights`."""
    from keras import Input, Model, layers

    x = image = Input((*FRONT_END.shape, 1), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for i, (filters, kernel, stride) in enumerate(_WIDTHS[widths]):
        strides = (2, stride)
        x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"convolution{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"normalization{i}")(x)
        x = layers.ReLU()(x)
    x = layers.AveragePooling2D((x.shape[1], 1))(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(dropout)(x)
    network = Model(image, layers.Dense(outputs, name="logits")(x), name=name)
    if weights is None:
        start(network, STARTS[widths])
    return network


def _mobilenetv2(outputs: int, weights: str | None) -> "keras.Model":
    from keras import Input, Model, layers
    from keras.applications import MobileNetV2

    try:
        base: Any = MobileNetV2(
            input_shape=(96, 96, 3), include_top=False, pooling="avg", weights=_backbone_weights(weights)
        )
    except (OSError, ValueError) as error:
        raise TwoPhaseError(
            f"--weights {weights}: cannot be loaded into MobileNetV2 without its top ({str(error).splitlines()[0]}); "
            "give imagenet (needs the network), or a .weights.h5 file of that network"
        ) from None
    x = image = Input((*FRONT_END.shape, 1), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Resizing(96, 96)(x)
    x = layers.Concatenate()([x, x, x])
    x = base(x)
    x = layers.Dropout(0.2)(x)
    return Model(image, layers.Dense(outputs, name="logits")(x), name="classifier")


def _backbone_weights(weights: str | None) -> str | None:
    if weights is None or weights == "imagenet":
        return weights
    if not Path(weights).is_file():
        raise UsageError(f"--weights {weights}: is no file; give imagenet or a .weights.h5 file")
    return weights
