"""Batches of images for `model.fit`: Keras's `ImageDataGenerator` for labelled folders and for packed image sets.

    generator = ImageGenerator(rescale=1 / 255, validation_split=0.2)
    train = generator.flow_from_directory("images", target_size=(61, 64), color_mode="grayscale", subset="training")
    train = generator.flow(images, labels, batch_size=64, seed=1)           # or straight from memory

Arguments, file order, class indices, splits, shapes and dtypes are Keras's (3.15, `keras.src.legacy.preprocessing`);
what Keras offers for photographs (rotation, flips, ...) is replaced by `Augment`, which knows spectrograms.

With the same images and batch size, the order of an epoch is a function of (seed, epoch) alone: a resumed training
goes on as if it had never stopped. It is the order in which Keras's iterator yields for the same seed, computed without
touching NumPy's global random state (indexed or in `fit`, Keras's own order after the first epoch hangs on that state).
Two things belong to the caller: `fit(shuffle=False)`, since `fit` otherwise also shuffles the batches by Python's
global random state; and, for a `fit` that resumes, `callbacks=[train.follow()]`.

Nothing is written. Making a sequence reads one image, to see that all fits together; after that files are opened when
their batch is asked for, and memory maps are touched at their rows alone. Raises `UsageError` for arguments,
`TwoPhaseError` for files.
"""

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from keras.callbacks import Callback, LambdaCallback
from keras.utils import PyDataset
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from twophase.errors import TwoPhaseError, UsageError
from twophase.training.augment import Augment

Array = NDArray[Any]
Batch = Array | tuple[Array, ...]
ClassMode = Literal["categorical", "binary", "sparse", "input"]

SUFFIXES = ("png", "jpg", "jpeg", "bmp", "ppm", "tif", "tiff")
"""Ends of the file names that are taken for images, in lower case; without a dot, as in Keras."""

CACHE_BYTES = 1 << 30
"""Folders of up to so many pixels are decoded once and kept: 275,000 images of 61 x 64."""

_CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


class Images(Protocol):
    """Images that are read by row: a packed set, a folder, an array in disguise."""

    def __len__(self) -> int:
        """How many images there are."""

    def take(self, rows: NDArray[np.intp], /) -> Array:
        """The images at `rows`, in that order: [n, frames, mels] or [n, height, width, channels]."""


class ImageGenerator:
    """How images become batches; `flow` and `flow_from_directory` say which images.

    Args:
        rescale: factor on every value; none if `None` or 0.
        preprocessing_function: called with each image, [height, width, channels] in `dtype`, before rescaling.
        validation_split: the share of the images, 0 to 1 exclusive, that `subset="validation"` gets: the first of
            each class in a folder, the first of all in an array.
        dtype: of the images and of labels made from folder names. `"uint8"` without `rescale` passes stored images
            through untouched, for models that rescale themselves.
        augment: what to do to each batch of stored levels, before all else; for images of one channel.
        background: uint8 [n, frames, mels], the images that `augment` mixes in, drawn anew for every image.
    """

    def __init__(
        self,
        rescale: float | None = None,
        preprocessing_function: Callable[[Array], Array] | None = None,
        validation_split: float = 0.0,
        dtype: DTypeLike = "float32",
        augment: Augment | None = None,
        background: Array | Images | None = None,
    ) -> None:
        if validation_split and not 0 < validation_split < 1:
            raise UsageError(f"validation_split is {validation_split}; give a share between 0 and 1, or 0 for none")
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if rescale and not np.issubdtype(self.dtype, np.floating):
            raise UsageError(f"rescale={rescale} needs a floating dtype, not {self.dtype}; leave one of them out")
        self.rescale = rescale
        self.preprocessing_function = preprocessing_function
        self.validation_split = validation_split
        mixes = augment is not None and augment.background_probability > 0
        if mixes != (background is not None):
            raise UsageError(
                f"background is {'missing' if mixes else 'given'} and Augment(background_probability="
                f"{augment.background_probability if augment else 0}); give both, or neither"
            )
        self.augment = augment
        self.background = None if background is None else _as_images(background)

    def flow(
        self,
        images: Array | Images,
        labels: Array | Sequence[int] | None = None,
        batch_size: int = 32,
        shuffle: bool = True,
        sample_weight: Array | None = None,
        seed: int | None = None,
        ignore_class_split: bool = False,
        subset: str | None = None,
        *,
        shard: tuple[int, int] = (0, 1),
        initial_epoch: int = 0,
    ) -> "ImageSequence":
        """Batches `(images[, labels[, sample_weight]])` from an array, a memory map or any `Images`.

        Images are [n, frames, mels], which gain a channel axis, or [n, height, width, channels]; batches are `dtype`.
        Labels (int [n], one-hot [n, classes], anything with n rows) and weights [n] are passed on as they are. The
        split is by position, as Keras's, and refused where the two sides hold different labels unless
        `ignore_class_split`: such images are sorted by label, or a label is too rare.
        """
        source = _as_images(images)
        n = len(source)
        y = None if labels is None else np.asarray(labels)
        weight = None if sample_weight is None else np.asarray(sample_weight)
        for name, column in (("labels", y), ("sample_weight", weight)):
            if column is not None and len(column) != n:
                raise UsageError(f"{name} has {len(column)} rows and images {n}; give one for each image")
        if weight is not None and y is None:
            raise UsageError("sample_weight was given without labels; a weight needs a label to weigh")
        start, stop = self._split(subset, n)
        if subset and y is not None and not ignore_class_split:
            cut = int(n * self.validation_split)
            if not np.array_equal(np.unique(y[:cut]), np.unique(y[cut:])):
                raise UsageError(
                    f"validation_split={self.validation_split} leaves different labels on its two sides; "
                    "shuffle images and labels together first, or pass ignore_class_split=True"
                )
        order = _Order(np.arange(start, stop), batch_size, shuffle, seed, shard, initial_epoch)
        return ImageSequence(self, source, order, y, weight)

    def flow_from_directory(
        self,
        directory: str | Path,
        target_size: tuple[int, int] = (256, 256),
        color_mode: str = "rgb",
        classes: Sequence[str] | None = None,
        class_mode: ClassMode | None = "categorical",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int | None = None,
        follow_links: bool = False,
        subset: str | None = None,
        interpolation: str = "nearest",
        keep_aspect_ratio: bool = False,
        *,
        shard: tuple[int, int] = (0, 1),
        initial_epoch: int = 0,
    ) -> "DirectorySequence":
        """Batches from `directory/class/.../image.png`: [n, *target_size, channels] and labels, both `dtype`.

        Classes are the folder names in alphabetical order, or `classes` in the given one. Labels are one-hot
        [n, classes] (`"categorical"`), class indices [n] (`"binary"`, `"sparse"`), the images themselves (`"input"`),
        or left out (`None`).
        """
        _one_of("class_mode", class_mode, ("categorical", "binary", "sparse", "input", None))
        _one_of("color_mode", color_mode, tuple(_CHANNELS))
        _one_of("interpolation", interpolation, tuple(_RESAMPLING))
        if self.augment and self.augment.mixup_alpha and class_mode not in ("categorical", "binary"):
            raise UsageError(
                f"mixup averages labels, which class_mode={class_mode!r} does not allow; use 'categorical'"
            )
        root = Path(directory)
        if not root.is_dir():
            raise TwoPhaseError(f"{root}: is not a folder; give one that holds a folder of images for each class")
        names = list(classes) if classes else sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        paths: list[str] = []
        indices: list[int] = []
        for index, name in enumerate(names):
            if not (root / name).is_dir():
                raise TwoPhaseError(f"{root}: has no folder for the class {name!r}; add it or take it out of classes")
            found = _image_files(root / name, follow_links)
            start, stop = self._split(subset, len(found))
            paths += found[start:stop]
            indices += [index] * (stop - start)
        if not paths:
            what = f"the {subset} subset holds no" if subset else "holds no"
            raise TwoPhaseError(f"{root}: {what} images; put {', '.join(SUFFIXES)} files into a folder for each class")
        size = (int(target_size[0]), int(target_size[1]))
        files = _Files(paths, size, color_mode, interpolation, keep_aspect_ratio)
        order = _Order(np.arange(len(paths)), batch_size, shuffle, seed, shard, initial_epoch)
        return DirectorySequence(self, files, order, root, names, np.array(indices, np.int32), class_mode)

    def _split(self, subset: str | None, n: int) -> tuple[int, int]:
        """The rows of `n` that a subset gets, as Keras rounds them."""
        _one_of("subset", subset, ("training", "validation", None))
        cut = int(self.validation_split * n)
        return {"validation": (0, cut), "training": (cut, n), None: (0, n)}[subset]


class _Order:
    """Which rows make batch `i` of an epoch: a pure function of (seed, epoch, i)."""

    def __init__(
        self,
        rows: NDArray[np.intp],
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        shard: tuple[int, int],
        initial_epoch: int,
    ) -> None:
        index, count = shard
        if not 0 <= index < count:
            raise UsageError(f"shard is {shard}; give (index, count) with 0 <= index < count")
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; give a number of images from 1 up")
        if initial_epoch < 0:
            raise UsageError(f"initial_epoch is {initial_epoch}; give a number from 0 up")
        if seed is None and shuffle and count > 1:
            raise UsageError("shuffled shards need the same seed on every worker, or they overlap; give seed")
        if len(rows) < count:
            raise UsageError(f"there are {len(rows)} images for {count} shard(s); each needs at least one")
        # Without a seed: one draw from NumPy's global state, so that keras.utils.set_random_seed still decides.
        self.seed = int(np.random.randint(2**31)) if seed is None else int(seed)
        self.rows, self.batch_size, self.shuffle = rows, batch_size, shuffle
        self.shard, self.epoch = shard, initial_epoch
        self._drawn: tuple[int, NDArray[np.intp]] | None = None

    def __len__(self) -> int:
        """Batches an epoch: for batches larger than 1 the same on every shard, so that workers in step end together."""
        index, count = self.shard
        most, mine = len(range(0, len(self.rows), count)), len(range(index, len(self.rows), count))
        return min(-(-most // self.batch_size), mine)

    def batch(self, i: int) -> NDArray[np.intp]:
        """The rows of batch `i`: `batch_size` of them, the last batch's the rest.

        A shard of one image less than others may have none left for its last batch, which then takes the one
        before's last.
        """
        drawn = self._drawn  # read once: other threads may replace it
        if drawn is None or drawn[0] != self.epoch:
            drawn = self._drawn = (self.epoch, self._draw(self.epoch))
        rows, last = drawn[1], len(drawn[1]) - 1
        start, stop = min(i * self.batch_size, last), min((i + 1) * self.batch_size, last)
        return rows[start:stop] if i + 1 < len(self) else rows[start:]

    def rng(self, i: int) -> np.random.Generator:
        """What the augmentation of batch `i` draws from."""
        return np.random.default_rng([self.seed % 2**32, self.epoch, self.shard[0], i])

    def _draw(self, epoch: int) -> NDArray[np.intp]:
        index, count = self.shard
        if not self.shuffle:
            return self.rows[index::count]
        # Keras seeds each epoch's permutation with seed + batches seen. All workers draw the one that a single worker
        # with their batches together draws, and share it out.
        n, batch_size = len(self.rows), count * self.batch_size
        state = np.random.RandomState((self.seed + epoch * -(-n // batch_size)) % 2**32)
        return self.rows[state.permutation(n)[index::count]]


class ImageSequence(PyDataset):  # type: ignore[misc]
    """A `keras.utils.PyDataset` of `len` batches an epoch; every image of its shard comes exactly once an epoch.

    `sequence[i]` is batch `i` of the current `epoch`, always the same bytes. The epoch advances with Keras's hooks
    (`on_epoch_end` after `on_epoch_begin`), at the end of a `for` loop, and as `next` passes it; `set_epoch` and
    `follow` set it. Leave `fit`'s `steps_per_epoch` out: with fewer steps Keras goes on with the rest of an epoch after
    it has called that epoch over.

    Attributes: `n` images over all shards, `batch_size`, `shuffle`, `seed`, `epoch`, `labels`, `sample_weight`.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        images: Images,
        order: _Order,
        labels: Array | None,
        sample_weight: Array | None,
    ) -> None:
        super().__init__()
        self.generator, self.images, self.labels, self.sample_weight = generator, images, labels, sample_weight
        self._order, self._running, self._next = order, False, 0
        self.n, self.batch_size = len(order.rows), order.batch_size
        self.shuffle, self.seed = order.shuffle, order.seed
        self._batch(order.rows[:1], np.random.default_rng(0))  # what does not fit together fails here, not inside `fit`

    @property
    def epoch(self) -> int:
        """The epoch, from 0, whose batches come now."""
        return self._order.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, from 0: what `fit(initial_epoch=...)` needs to go on where it stopped."""
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}; give a number from 0 up")
        self._order.epoch, self._next = int(epoch), 0

    def follow(self) -> Callback:
        """A callback that keeps `epoch` equal to `fit`'s own count, wherever that starts."""
        return LambdaCallback(on_epoch_begin=lambda epoch, _: self.set_epoch(epoch))

    def on_epoch_begin(self) -> None:
        """Keras's hook."""
        self._running = True

    def on_epoch_end(self) -> None:
        """Keras's hook. `fit` and `evaluate` also call it before the first epoch, which is then not over."""
        if self._running:
            self._running = False
            self.set_epoch(self.epoch + 1)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"there is no batch {i}; an epoch has {len(self)}")
        rows = self._order.batch(i)
        x, y = self._batch(rows, self._order.rng(i))
        if y is None:
            return x
        return (x, y) if self.sample_weight is None else (x, y, self.sample_weight[rows])

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch."""
        for i in range(len(self)):
            yield self[i]
        self.set_epoch(self.epoch + 1)

    def __next__(self) -> Batch:
        """Batch after batch, epoch after epoch, without an end."""
        batch = self[self._next]
        if self._next + 1 < len(self):
            self._next += 1
        else:
            self.set_epoch(self.epoch + 1)
        return batch

    def _batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> tuple[Array, Array | None]:
        generator, dtype = self.generator, self.generator.dtype
        x, y = self.images.take(rows), self._labels(rows)
        if x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4:
            raise UsageError(f"images are {list(x.shape)}; give [n, frames, mels] or [n, height, width, channels]")
        if generator.augment:
            if x.shape[3] != 1:
                raise UsageError(
                    f"augment needs images of one channel, not of {x.shape[3]}; use color_mode='grayscale'"
                )
            behind = None
            if generator.background:
                behind = generator.background.take(rng.integers(len(generator.background), size=len(x)))
            x, y = generator.augment(x[..., 0], y, rng, behind)
            if not np.issubdtype(dtype, np.floating):
                np.rint(x, out=x)
            x = x[..., None]
        working = np.result_type(dtype, np.float32) if np.issubdtype(dtype, np.floating) else dtype
        x = x.astype(working)
        if generator.preprocessing_function:
            x = np.stack([generator.preprocessing_function(image) for image in x]).astype(working, copy=False)
        if generator.rescale:
            x *= working.type(generator.rescale)
        return x.astype(dtype, copy=False), y

    def _labels(self, rows: NDArray[np.intp]) -> Array | None:
        return None if self.labels is None else self.labels[rows]


class DirectorySequence(ImageSequence):
    """An `ImageSequence` over labelled folders, with the attributes of Keras's `DirectoryIterator`.

    Attributes: `directory`, `filenames` (relative to it), `filepaths`, `samples`, `classes` (int32 [samples]),
    `class_indices` (name -> index), `num_classes`, `class_mode`, `image_shape`.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        files: "_Files",
        order: _Order,
        directory: Path,
        names: list[str],
        classes: NDArray[np.int32],
        class_mode: ClassMode | None,
    ) -> None:
        self.directory, self.classes, self.class_mode = directory, classes, class_mode
        self.filepaths, self.samples, self.image_shape = files.paths, len(files), files.shape
        self.filenames = [os.path.relpath(path, directory) for path in files.paths]
        self.class_indices = {name: index for index, name in enumerate(names)}
        self.num_classes = len(names)
        super().__init__(generator, files, order, classes, None)

    def _batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> tuple[Array, Array | None]:
        x, y = super()._batch(rows, rng)
        return x, x.copy() if self.class_mode == "input" else y

    def _labels(self, rows: NDArray[np.intp]) -> Array | None:
        if self.class_mode in (None, "input"):
            return None
        classes: Array = self.classes[rows]
        if self.class_mode == "categorical":
            classes = classes[:, None] == np.arange(self.num_classes)
        return classes.astype(self.generator.dtype)


def _as_images(images: Array | Images) -> Images:
    return _Rows(np.asarray(images)) if isinstance(images, np.ndarray) else images


class _Rows:
    """An array or a memory map as `Images`."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def take(self, rows: NDArray[np.intp], /) -> Array:
        return self._array[rows]


class _Files:
    """Image files as `Images`, decoded once, as `keras.utils.load_img` decodes them.

    Decoding a PNG this small takes Pillow 60 us, OpenCV and libspng 40, and a second thread hardly helps; so what has
    been decoded is kept: where all images together take up to `CACHE_BYTES`, later epochs read no file.
    """

    def __init__(
        self, paths: list[str], size: tuple[int, int], color_mode: str, interpolation: str, keep_aspect_ratio: bool
    ) -> None:
        self.paths, self.shape = paths, (*size, _CHANNELS[color_mode])
        self._size, self._mode = (size[1], size[0]), {"grayscale": "L", "rgb": "RGB", "rgba": "RGBA"}[color_mode]
        self._resampling, self._keep_aspect_ratio = _RESAMPLING[interpolation], keep_aspect_ratio
        kept = len(paths) if len(paths) * math.prod(self.shape) <= CACHE_BYTES else 0
        self._pixels = np.empty((kept, *self.shape), np.uint8)  # address space until an image is decoded into it
        self._decoded = np.zeros(kept, np.bool_)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: NDArray[np.intp], /) -> Array:
        if not len(self._decoded):
            return self._decode(rows)
        missing = rows[~self._decoded[rows]]
        if len(missing):
            fresh = self._decode(missing)
            if fresh.dtype != np.uint8:  # deep images do not fit
                return fresh if len(missing) == len(rows) else self._decode(rows)
            self._pixels[missing] = fresh
            self._decoded[missing] = True
        return self._pixels[rows]

    def _decode(self, rows: NDArray[np.intp]) -> Array:
        """uint8 [n, height, width, channels]; wider if a file has more than 8 bits of gray."""
        return np.stack([self._read(self.paths[row]) for row in rows]).reshape(len(rows), *self.shape)

    def _read(self, path: str) -> Array:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path each costs as much as the reading
                return np.asarray(self._fit(Image.open(io.BytesIO(file.read()))))
        except FileNotFoundError:
            raise TwoPhaseError(f"{path}: has gone since the folder was listed; make the generator again") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise TwoPhaseError(f"{path}: is not an image that can be read ({error}); replace or remove it") from None

    def _fit(self, image: Image.Image) -> Image.Image:
        deep_gray = self._mode == "L" and image.mode in ("I;16", "I")  # Keras keeps more than 8 bits of gray
        if image.mode != self._mode and not deep_gray:
            image = image.convert(self._mode)
        if image.size == self._size:
            return image
        if not self._keep_aspect_ratio:
            return image.resize(self._size, self._resampling)
        (width, height), (target_width, target_height) = image.size, self._size
        cut_width = min(width, height * target_width // target_height)
        cut_height = min(height, width * target_height // target_width)
        left, top = (width - cut_width) // 2, (height - cut_height) // 2
        return image.resize(self._size, self._resampling, box=(left, top, left + cut_width, top + cut_height))


def _image_files(folder: Path, follow_links: bool) -> list[str]:
    """All image files below `folder`, by folder and then by name, as Keras lists them."""
    walk = sorted(os.walk(folder, followlinks=follow_links), key=lambda entry: entry[0])
    return [
        os.path.join(root, name)  # noqa: PTH118 - a million of these
        for root, _, names in walk
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES)
    ]


def _one_of(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise UsageError(f"{name} is {value!r}; give one of {', '.join(map(repr, accepted))}")
