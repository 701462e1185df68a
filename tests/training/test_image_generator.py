import re
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.src.legacy.preprocessing.image import ImageDataGenerator
from PIL import Image

from twophase.errors import TwoPhaseError, UsageError
from twophase.training.augment import Augment
from twophase.training.image_generator import ImageGenerator

SIZE = {"target_size": (61, 64), "color_mode": "grayscale"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders as people have them: unsorted names, folders in folders, other files, other sizes and colours."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, count in (("violin", 11), ("Oboe", 7), ("cello", 4)):
        for i in range(count):
            path = root / name / ("more" if i % 4 == 3 else "") / f"{(i * 7) % 13}.{'PNG' if i == 2 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (61, 64), dtype=np.uint8)).save(path)
    Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(root / "cello" / "colour.png")
    Image.fromarray(rng.integers(0, 256, (61, 64, 4), dtype=np.uint8)).save(root / "cello" / "see-through.png")
    Image.fromarray(rng.integers(0, 256, (80, 64), dtype=np.uint8)).convert("P").save(root / "cello" / "palette.png")
    Image.fromarray(rng.integers(0, 256, (61, 64), dtype=np.uint8)).save(root / "cello" / "photo.jpg")
    (root / "cello" / "notes.txt").write_text("not an image")
    (root / "empty").mkdir()
    (root / "stray.png").write_bytes(b"")
    return root


def same(ours, theirs):
    """Equal structure, shapes, dtypes and values."""
    assert isinstance(ours, tuple) == isinstance(theirs, tuple)
    ours, theirs = (batch if isinstance(batch, tuple) else (batch,) for batch in (ours, theirs))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def named(value: object) -> str:
    """A test's name: the same in every process, so without the address of a function."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(
    ("generator", "flow"),
    [
        ({}, {}),
        ({"rescale": 1 / 255}, SIZE),
        ({}, {**SIZE, "classes": ["violin", "cello"]}),
        ({}, {**SIZE, "class_mode": "categorical"}),
        ({}, {**SIZE, "class_mode": "sparse"}),
        ({}, {**SIZE, "class_mode": "binary", "classes": ["violin", "Oboe"]}),
        ({"rescale": 0.5}, {**SIZE, "class_mode": "input"}),
        ({}, {**SIZE, "class_mode": None}),
        ({}, {"target_size": (61, 64), "color_mode": "rgb"}),
        ({}, {"target_size": (61, 64), "color_mode": "rgba"}),
        ({}, {**SIZE, "batch_size": 1}),
        ({}, {**SIZE, "batch_size": 13}),
        ({}, {**SIZE, "batch_size": 1000}),
        ({}, {**SIZE, "shuffle": False}),
        ({}, {**SIZE, "seed": 2**32 - 40}),
        ({"validation_split": 0.3}, {**SIZE, "subset": "training"}),
        ({"validation_split": 0.3}, {**SIZE, "subset": "validation"}),
        ({"validation_split": 0.3}, {**SIZE, "subset": "validation", "shuffle": False}),
        ({"validation_split": 0.3}, SIZE),
        ({}, {**SIZE, "subset": "training"}),
        ({"preprocessing_function": lambda image: image[::-1] + 1, "rescale": 1 / 3}, SIZE),
        ({"dtype": "float16", "rescale": 1 / 255}, SIZE),
        ({"dtype": "uint8"}, SIZE),
        ({}, {"target_size": (20, 30), "color_mode": "grayscale", "keep_aspect_ratio": True}),
        *(
            ({}, {"target_size": (30, 90), "color_mode": "rgb", "interpolation": name})
            for name in ("nearest", "bilinear", "bicubic", "hamming", "box", "lanczos")
        ),
    ],
    ids=named,
)
def test_a_folder_gives_what_keras_gives(folder, generator, flow):
    flow = {"seed": 5, "batch_size": 6, **flow}
    theirs = ImageDataGenerator(**generator).flow_from_directory(str(folder), **flow)
    ours = ImageGenerator(**generator).flow_from_directory(folder, **flow)
    assert ours.filenames == theirs.filenames
    assert ours.filepaths == theirs.filepaths
    assert ours.class_indices == theirs.class_indices
    assert ours.image_shape == theirs.image_shape
    assert (ours.samples, ours.num_classes, len(ours)) == (theirs.samples, theirs.num_classes, len(theirs))
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert ours.classes.dtype == theirs.classes.dtype
    for _ in range(3 * len(theirs)):  # three epochs, the same order in each
        same(next(ours), next(theirs))


def test_deep_gray_keeps_its_depth(tmp_path):
    for i in range(5):
        (tmp_path / "a").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 2**16, (61, 64), dtype=np.uint16)
        Image.fromarray(pixels if i else (pixels >> 8).astype(np.uint8)).save(tmp_path / "a" / f"{i}.png")
    theirs = ImageDataGenerator().flow_from_directory(str(tmp_path), **SIZE, batch_size=2, seed=1)
    ours = ImageGenerator().flow_from_directory(tmp_path, **SIZE, batch_size=2, seed=1)
    for _ in range(6):
        same(next(ours), next(theirs))


ARRAY = np.random.default_rng(1).integers(0, 256, (23, 61, 64, 1), dtype=np.uint8)
LABELS = np.arange(23) % 3
WEIGHTS = np.linspace(0, 1, 23)


@pytest.mark.parametrize(
    ("generator", "labels", "flow"),
    [
        ({}, None, {}),
        ({"rescale": 1 / 255}, LABELS, {}),
        ({}, np.eye(3, dtype=np.float32)[LABELS], {"batch_size": 5}),
        ({}, LABELS, {"sample_weight": WEIGHTS}),
        ({}, LABELS, {"shuffle": False}),
        ({"validation_split": 0.4}, LABELS, {"subset": "training"}),
        ({"validation_split": 0.4}, LABELS, {"subset": "validation"}),
        ({"validation_split": 0.1}, np.arange(23), {"subset": "validation", "ignore_class_split": True}),
        ({"preprocessing_function": np.flipud}, LABELS, {}),
        ({"dtype": "float64"}, LABELS, {}),
    ],
    ids=named,
)
def test_an_array_gives_what_keras_gives(generator, labels, flow):
    flow = {"seed": 3, "batch_size": 4, **flow}
    theirs = ImageDataGenerator(**generator).flow(ARRAY, labels, **flow)
    ours = ImageGenerator(**generator).flow(ARRAY, labels, **flow)
    assert len(ours) == len(theirs)
    for _ in range(3 * len(theirs)):
        same(next(ours), next(theirs))


class Packed:
    """Images that are no array, as an image set on disk is; remembers what was read."""

    def __init__(self, images):
        self.images, self.read = images, []

    def __len__(self):
        return len(self.images)

    def take(self, rows, /):
        self.read.append(list(rows))
        return self.images[rows]


def test_arrays_memory_maps_and_image_sets_are_the_same_images(tmp_path):
    np.save(tmp_path / "pack.npy", ARRAY[..., 0])
    sources = ARRAY, ARRAY[..., 0], np.load(tmp_path / "pack.npy", mmap_mode="r"), Packed(ARRAY[..., 0])
    flows = [ImageGenerator(rescale=1 / 255).flow(source, LABELS, seed=1, batch_size=10) for source in sources]
    for batches in zip(*flows, strict=True):
        for batch in batches:
            assert batch[0].shape[1:] == (61, 64, 1)
            assert type(batch[0]) is np.ndarray
            same(batch, batches[0])


def test_stored_bytes_pass_through_untouched():
    flow = ImageGenerator(dtype="uint8").flow(ARRAY, shuffle=False, batch_size=23)
    same(flow[0], ARRAY)


def test_a_batch_is_the_caller_s_own():
    images = ARRAY.astype(np.float32)
    flow = ImageGenerator().flow(images, shuffle=False)
    flow[0][:] = -1
    same(flow[0], ARRAY.astype(np.float32))
    assert (images >= 0).all()


def rows_of(flow, epoch):
    flow.set_epoch(epoch)
    return [flow[i][:, 0, 0, 0].astype(int).tolist() for i in range(len(flow))]


def numbered(n):
    return np.arange(n, dtype=np.float32)[:, None, None] + np.zeros((1, 2, 2), np.float32)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 70),
    batch_size=st.integers(1, 30),
    count=st.integers(1, 7),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
    shuffle=st.booleans(),
)
def test_every_image_comes_once_an_epoch(n, batch_size, count, seed, epoch, shuffle):
    count = min(n, count)
    shards = [
        ImageGenerator().flow(numbered(n), batch_size=batch_size, shuffle=shuffle, seed=seed, shard=(i, count))
        for i in range(count)
    ]
    if batch_size > 1:
        assert len({len(shard) for shard in shards}) == 1  # workers that go in step end together
    batches = [rows for shard in shards for rows in rows_of(shard, epoch)]
    assert all(1 <= len(rows) <= batch_size for rows in batches)
    assert sorted(row for rows in batches for row in rows) == list(range(n))
    if count == 1:
        assert len(shards[0]) == -(-n // batch_size)
        assert all(len(rows) == batch_size for rows in batches[:-1])


EVERYTHING = Augment(
    shift_frames=5, background_probability=0.5, tilt_db=3, mixup_alpha=0.2, time_masks=1, time_mask_frames=9
)


def augmented(**flow):
    generator = ImageGenerator(rescale=1 / 255, augment=EVERYTHING, background=Packed(ARRAY[::2, ..., 0]))
    labels = np.eye(3, dtype=np.float32)[LABELS]
    return generator.flow(ARRAY[..., 0], labels, **{"batch_size": 5, "seed": 9, **flow})


@settings(max_examples=20, deadline=None)
@given(epoch=st.integers(0, 1000), order=st.permutations(range(5)))
def test_seed_and_epoch_alone_decide(epoch, order):
    first, second = augmented(), augmented(initial_epoch=epoch)
    first.set_epoch(epoch)
    expected = [first[i] for i in range(5)]
    for i in order:  # whatever was asked for before
        same(second[i], expected[i])


def test_epochs_shards_and_batches_are_augmented_anew():
    flow = augmented(shuffle=False)
    before = flow[0][0]
    flow.set_epoch(1)
    assert (flow[0][0] != before).any()
    constant = ImageGenerator(augment=Augment(tilt_db=9)).flow(np.repeat(ARRAY[:1], 8, axis=0), batch_size=4, seed=1)
    assert (constant[0] != constant[1]).any()
    shards = [
        ImageGenerator(augment=Augment(tilt_db=9)).flow(np.repeat(ARRAY[:1], 8, axis=0), seed=1, shard=(i, 2))
        for i in range(2)
    ]
    assert (shards[0][0] != shards[1][0]).any()


def test_augmented_bytes_are_rounded():
    flow = ImageGenerator(dtype="uint8", augment=Augment(tilt_db=3)).flow(ARRAY, seed=1, batch_size=23)
    exact = ImageGenerator(augment=Augment(tilt_db=3)).flow(ARRAY, seed=1, batch_size=23)
    same(flow[0], np.rint(exact[0]).astype(np.uint8))


def test_augmentation_of_a_folder(folder):
    flow = ImageGenerator(augment=Augment(mixup_alpha=0.3, tilt_db=2)).flow_from_directory(folder, **SIZE, seed=1)
    x, y = flow[0]
    assert x.shape == (26, 61, 64, 1)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)


def test_loops_and_next_walk_through_the_epochs():
    looped, stepped = augmented(), augmented()
    for epoch in range(3):
        assert looped.epoch == stepped.epoch == epoch
        for batch in looped:
            same(next(stepped), batch)


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()
    next(augmented())
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_without_a_seed_keras_s_global_seed_decides():
    keras.utils.set_random_seed(4)
    first = ImageGenerator().flow(numbered(50))
    keras.utils.set_random_seed(4)
    again, other = ImageGenerator().flow(numbered(50)), ImageGenerator().flow(numbered(50))
    assert rows_of(first, 1) == rows_of(again, 1) != rows_of(other, 1)


def model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((61, 64, 1)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    net = keras.Sequential(layers)
    net.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    return net


def fitted(net, flow, **fit):
    history = net.fit(flow, shuffle=False, verbose=0, **fit)
    return history.history["loss"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_fit_goes_on_as_if_it_had_never_stopped(workers):
    flows = [augmented() for _ in range(3)]
    for flow in flows:
        flow.workers = workers
    whole = fitted(model(), flows[0], epochs=4, callbacks=[flows[0].follow()])
    net = model()
    first = fitted(net, flows[1], epochs=2, callbacks=[flows[1].follow()])
    second = fitted(net, flows[2], initial_epoch=2, epochs=4, callbacks=[flows[2].follow()])
    assert first + second == whole
    assert len(set(whole)) == 4


def test_fit_alone_advances_the_epochs():
    source = Packed(ARRAY[..., 0])
    flow = ImageGenerator(rescale=1 / 255).flow(source, np.eye(3)[LABELS], batch_size=5, seed=9)
    fitted(model(), flow, epochs=3, validation_data=augmented())
    assert flow.epoch == 3
    read = source.read[-15:]  # what came before is Keras finding out shapes
    flow.set_epoch(0)
    expected = []
    for _ in range(3):
        source.read.clear()
        list(flow)
        expected += source.read
    assert read == expected


def test_predict_and_weights(folder):
    flow = ImageGenerator(rescale=1 / 255).flow(ARRAY, batch_size=5, shuffle=False)
    assert model().predict(flow, verbose=0).shape == (23, 3)
    weighted = ImageGenerator().flow(ARRAY, np.eye(3)[LABELS], sample_weight=np.zeros(23), seed=1)
    assert fitted(model(), weighted, epochs=1) == [0.0]


def one_folder(tmp_path, n=6):
    (tmp_path / "a").mkdir()
    for i in range(n):
        Image.fromarray(ARRAY[i, ..., 0]).save(tmp_path / "a" / f"{i}.png")
    return tmp_path


def test_a_file_is_decoded_once(tmp_path):
    flow = ImageGenerator().flow_from_directory(one_folder(tmp_path), **SIZE, batch_size=4, seed=1)
    first = Counter(image.tobytes() for x, _ in flow for image in x)
    for path in flow.filepaths:
        Path(path).unlink()
    assert Counter(image.tobytes() for x, _ in flow for image in x) == first


def test_a_folder_too_large_to_keep_is_read_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr("twophase.training.image_generator.CACHE_BYTES", 61 * 64 * 5)
    flow = ImageGenerator().flow_from_directory(one_folder(tmp_path), **SIZE, shuffle=False)
    same(flow[0][0], ARRAY[:6].astype(np.float32))
    Path(flow.filepaths[3]).unlink()
    with pytest.raises(TwoPhaseError, match=r"3\.png: has gone"):
        flow[0]


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", "cut", "flipped"])
def test_a_broken_image_is_named(tmp_path, content):
    path = one_folder(tmp_path) / "a" / "4.png"
    whole = path.read_bytes()
    damage = {"cut": whole[: len(whole) // 2], "flipped": whole[:200] + bytes(200) + whole[400:]}
    path.write_bytes(damage.get(content, content))
    flow = ImageGenerator().flow_from_directory(tmp_path, **SIZE)
    with pytest.raises(TwoPhaseError, match=r"4\.png: is not an image"):
        flow[0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: ImageGenerator(validation_split=1.5), "validation_split is 1.5"),
        (lambda f: ImageGenerator(dtype="uint8", rescale=0.1), "uint8"),
        (lambda f: ImageGenerator(background=ARRAY), "background is given"),
        (lambda f: ImageGenerator(augment=Augment(background_probability=0.1)), "background is missing"),
        (lambda f: ImageGenerator().flow(ARRAY, LABELS[:5]), "labels has 5 rows and images 23"),
        (lambda f: ImageGenerator().flow(ARRAY, LABELS, sample_weight=WEIGHTS[:5]), "sample_weight has 5"),
        (lambda f: ImageGenerator().flow(ARRAY, sample_weight=WEIGHTS), "without labels"),
        (lambda f: ImageGenerator().flow(ARRAY[..., 0, 0]), r"images are \[1, 61, 1\]|images are \[1, 61\]"),
        (lambda f: ImageGenerator().flow(ARRAY[:0]), "0 images"),
        (lambda f: ImageGenerator().flow(ARRAY, batch_size=0), "batch_size is 0"),
        (lambda f: ImageGenerator().flow(ARRAY, shard=(2, 2), seed=1), r"shard is \(2, 2\)"),
        (lambda f: ImageGenerator().flow(ARRAY, shard=(0, 24), seed=1), "23 images for 24 shard"),
        (lambda f: ImageGenerator().flow(ARRAY, shard=(0, 2)), "give seed"),
        (lambda f: ImageGenerator().flow(ARRAY, initial_epoch=-1), "initial_epoch is -1"),
        (lambda f: ImageGenerator().flow(ARRAY).set_epoch(-1), "epoch is -1"),
        (lambda f: ImageGenerator().flow(ARRAY, subset="test"), "'test'.*'training', 'validation'"),
        (lambda f: ImageGenerator(validation_split=0.2).flow(ARRAY, np.arange(23), subset="training"), "shuffle"),
        (lambda f: ImageGenerator(augment=Augment(mixup_alpha=1)).flow(ARRAY, LABELS), "one-hot"),
        (lambda f: ImageGenerator(augment=Augment(tilt_db=1)).flow_from_directory(f), "color_mode='grayscale'"),
        (
            lambda f: ImageGenerator(augment=Augment(background_probability=1), background=ARRAY[:, :9, :, 0]).flow(
                ARRAY
            ),
            r"\[1, 9, 64\].*\[1, 61, 64\]",
        ),
        (
            lambda f: ImageGenerator(augment=Augment(mixup_alpha=1)).flow_from_directory(f, class_mode="sparse"),
            "class_mode='sparse'",
        ),
        (lambda f: ImageGenerator().flow_from_directory(f, class_mode="other"), "class_mode is 'other'"),
        (lambda f: ImageGenerator().flow_from_directory(f, color_mode="gray"), "color_mode is 'gray'"),
        (lambda f: ImageGenerator().flow_from_directory(f, interpolation="cubic"), "interpolation is 'cubic'"),
    ],
)
def test_what_was_asked_wrongly_is_said(folder, call, says):
    with pytest.raises(UsageError, match=says):
        call(folder)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: ImageGenerator().flow_from_directory(f / "nowhere"), "nowhere: is not a folder"),
        (lambda f: ImageGenerator().flow_from_directory(f, classes=["cello", "harp"]), "'harp'"),
        (lambda f: ImageGenerator().flow_from_directory(f, classes=["empty"]), "holds no images"),
        (lambda f: ImageGenerator().flow_from_directory(f, subset="validation"), "the validation subset holds no"),
    ],
)
def test_folders_without_images_are_named(folder, call, says):
    with pytest.raises(TwoPhaseError, match=says):
        call(folder)


def test_a_batch_beyond_the_epoch():
    flow = augmented()
    for i in (-1, len(flow)):
        with pytest.raises(IndexError, match="an epoch has 5"):
            flow[i]
