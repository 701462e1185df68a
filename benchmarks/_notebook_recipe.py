"""A fixed script: one clip to one image, by the steps of the reference notebook.

ML Design Patterns (Lakshmanan, Robinson, Munn; O'Reilly 2020), chapter 5, makes a spectrogram with SciPy's defaults,
draws its logarithm as a colour mesh on a figure of 28 by 28 inches without axes, saves that as a PNG, opens it again,
shrinks it and saves it once more. Here it shrinks to our image's size, and closes its figures: both in its favour.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image
from scipy import signal


def make_image(pcm: np.ndarray, rate: int, path: Path, size: tuple[int, int]) -> None:
    """Write the picture of a clip, float32 [n], to a PNG of at most `size` pixels, (width, height)."""
    frequencies, times, power = signal.spectrogram(pcm, rate)
    figure = plt.figure(figsize=(28, 28), frameon=False)
    plt.axis("off")
    with np.errstate(divide="ignore"):
        plt.pcolormesh(times, frequencies, np.log(power))
    figure.savefig(path)
    plt.close(figure)
    with Image.open(path) as large:
        large.thumbnail(size, Image.Resampling.LANCZOS)
        large.convert("RGB").save(path)
