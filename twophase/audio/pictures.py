"""Images as files: labelled PNG folders for training elsewhere, and pictures for people.

    FOLDER/<split>/<label>/<clip>-<n>.png   8-bit grayscale, one a window; <clip> is the start of the clip's digest

The exported PNGs are for machines: their pixels are the stored arrays as they are, 61 rows (time, downwards) by 64
columns (mel bands, low ones left), so that `flow_from_directory(target_size=(61, 64), color_mode="grayscale")` gives
the stored images back. Pictures for people are turned: time to the right, low frequencies at the bottom, in colour.

An export is whole or absent; so is a contact sheet.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twophase.audio.dataset import SPLITS
from twophase.audio.frontend import FRONT_END, Image
from twophase.audio.images import ImageSet, Report
from twophase.files import new_directory, replacing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

COLOURS = "magma"
"""Matplotlib's name of the colour map: perceptually uniform, readable without colour vision and in print."""


def export_png(images: ImageSet, folder: Path, report: Report = lambda n: None) -> int:
    """Write every image of the set below `folder`, which must not exist or be empty; return how many there are.

    `report` is called once a clip. Raises `TwoPhaseError` when the folder is in use or cannot be written.
    """
    from PIL import Image as pillow

    with new_directory(folder) as root:
        for split in SPLITS:
            for label in images.labels:
                rows = images.rows(split, [label])
                if not len(rows):
                    continue
                home = root / split / file_name(label)
                home.mkdir(parents=True)
                for clip, of_clip in _by_clip(images, rows):
                    for n, pixels in enumerate(images.take(of_clip)):
                        pillow.fromarray(pixels).save(home / f"{images.clips[clip].sha256[:16]}-{n:02d}.png")
                    report(1)
    return len(images)


def file_name(label: str) -> str:
    """A label as the name of its folder: as it is, but for what a file name cannot hold, percent-encoded."""
    name = "".join(f"%{ord(c):02X}" if c in '%/\\:*?"<>|' or c < " " else c for c in label)
    return f"%2E{name[1:]}" if name.startswith(".") else name


def contact_sheet(images: ImageSet, path: Path, per_label: int = 8) -> None:
    """Draw a PNG with up to `per_label` clips of every label, a row a label, the wanted labels first.

    Raises `TwoPhaseError` when `path` cannot be written.
    """
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    scale, gap, margin, head = 2, 4, 24, 40
    width, height = FRONT_END.frames * scale, FRONT_END.mels * scale
    font, small = (ImageFont.truetype(_font_file(), size) for size in (20, 15))
    ordered = by_wanted(images)
    text = 40 + max(int(font.getlength(label)) for label in ordered)
    size = (2 * margin + text + per_label * (width + gap), 2 * margin + head + len(ordered) * (height + gap))
    sheet = pillow.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), "One window a clip: time to the right, low frequencies at the bottom", "#555", small)
    for i, label in enumerate(ordered):
        top = margin + head + i * (height + gap)
        wanted = label in images.wanted
        clips = sum(c.label == label for c in images.clips)
        draw.text((margin, top + height // 2 - 24), label, "black" if wanted else "#777", font)
        draw.text(
            (margin, top + height // 2 + 4), f"{'wanted' if wanted else 'unwanted'}, {clips} clips", "#777", small
        )
        for n, image in enumerate(images.take(example_rows(images, label, per_label))):
            tile = picture(image).convert("RGB").resize((width, height), pillow.Resampling.NEAREST)
            sheet.paste(tile, (margin + text + n * (width + gap), top))
    with replacing(path) as file:
        sheet.save(file, "PNG")


def by_wanted(images: ImageSet) -> Sequence[str]:
    """The labels, wanted ones first, each kind by name."""
    return sorted(images.labels, key=lambda label: (label not in images.wanted, label))


def example_rows(images: ImageSet, label: str, count: int) -> NDArray[np.int64]:
    """Rows that show a label: the first window of up to `count` of its clips, evenly spread; int [<= count]."""
    rows = np.flatnonzero(images.label_of_row == images.labels.index(label))
    first = rows[np.unique(images.clip_of_row[rows], return_index=True)[1]]
    chosen = np.unique(np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(np.int64))
    return np.asarray(first[chosen], np.int64)


def picture(image: Image) -> "Picture":
    """One image, or several side by side, for people: uint8 [frames, mels] -> a picture of `mels` rows in colour."""
    from matplotlib import colormaps
    from PIL import Image as pillow

    drawn = pillow.fromarray(np.ascontiguousarray(image.T[::-1]))
    drawn.putpalette(colormaps[COLOURS](np.arange(256), bytes=True)[:, :3].tobytes())
    return drawn


def png(image: Image) -> bytes:
    """`picture` as the bytes of a PNG with a palette, about 3 kB a window."""
    file = io.BytesIO()
    picture(image).save(file, "PNG", optimize=True)
    return file.getvalue()


def _by_clip(images: ImageSet, rows: NDArray[np.int64]) -> "list[tuple[int, NDArray[np.int64]]]":
    clips, starts = np.unique(images.clip_of_row[rows], return_index=True)
    return list(zip(clips.tolist(), np.split(rows, starts[1:]), strict=True))


def _font_file() -> str:
    import matplotlib

    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
