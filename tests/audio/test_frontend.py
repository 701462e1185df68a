"""The front end: four forms, one image; librosa from outside; a window alone is the same window in any batch."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from twophase.audio import frontend_compiled
from twophase.audio.frontend import FRONT_END, Floats, FrontEnd, Image

CLOSE = 1e-4
"""How far forms may be apart on the [0, 1] image before rounding (docs/data.md)."""


def sounds() -> Floats:
    """Windows of every kind that matters: float32 [n, samples]."""
    rng = np.random.default_rng(7)
    t = np.arange(FRONT_END.samples) / FRONT_END.sample_rate
    noise = rng.standard_normal(FRONT_END.samples)
    impulse = np.zeros_like(t)
    impulse[5000] = 1.0
    chirp = np.sin(2 * np.pi * (50 * t + 3900 * t**2))
    windows = [
        noise * 0.1,
        noise * 1e-4,
        noise * 3.0,
        np.sin(2 * np.pi * 440 * t),
        np.sin(2 * np.pi * 440 * t) * np.exp(-8 * t) + noise * 1e-3,
        chirp,
        impulse,
        np.sign(np.sin(2 * np.pi * 110 * t)),
        np.full_like(t, 0.5),
        np.zeros_like(t),
        np.concatenate([chirp[:4000], np.zeros(len(t) - 4000)]),
    ]
    return np.stack(windows).astype(np.float32)


def graph_images(windows: Floats) -> tuple[Floats, Floats]:
    """What TensorFlow and LiteRT make of windows, before rounding."""
    tf = pytest.importorskip("tensorflow")
    from ai_edge_litert.interpreter import Interpreter

    from twophase.audio.frontend_graph import unit_image_graph

    function = tf.function(
        unit_image_graph, input_signature=[tf.TensorSpec([1, FRONT_END.samples], tf.float32, name="pcm")]
    )
    concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    lite = Interpreter(model_content=converter.convert())
    lite.allocate_tensors()
    flow, lites = [], []
    for window in windows:
        flow.append(concrete(tf.constant(window[None])).numpy()[0])
        lite.set_tensor(lite.get_input_details()[0]["index"], window[None])
        lite.invoke()
        lites.append(lite.get_tensor(lite.get_output_details()[0]["index"])[0])
    return np.stack(flow), np.stack(lites)


@pytest.fixture(scope="module")
def everything(recordings_windows: Floats) -> Floats:
    return np.concatenate([sounds(), recordings_windows])


@pytest.fixture(scope="module")
def graph(everything: Floats) -> tuple[Floats, Floats]:
    return graph_images(everything)


@pytest.mark.parametrize("form", [0, 1], ids=["tensorflow", "litert"])
def test_graph_forms_agree_with_numpy(everything: Floats, graph: tuple[Floats, Floats], form: int) -> None:
    unit = FRONT_END.unit_images(everything)
    assert np.abs(graph[form] - unit).max() <= CLOSE
    levels = np.rint(graph[form] * 255.0) - FRONT_END.images(everything)
    assert np.abs(levels).max() <= 1


def test_the_compiled_form_agrees_with_numpy(everything: Floats) -> None:
    assert np.abs(frontend_compiled.unit_images(everything) - FRONT_END.unit_images(everything)).max() <= CLOSE
    levels = frontend_compiled.images(everything).astype(int) - FRONT_END.images(everything)
    assert np.abs(levels).max() <= 1


@given(st.integers(5, 7), st.integers(1, 40), st.integers(4, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_compiled_form_follows_the_front_end(half: int, frames: int, mels: int, seed: int) -> None:
    other = FrontEnd(n_fft=2 * 2**half, hop=2**half, frames=frames, mels=mels)
    windows = np.random.default_rng(seed).standard_normal((2, other.samples)).astype(np.float32)
    found = frontend_compiled.unit_images(windows, other)
    assert np.abs(found - other.unit_images(windows)).max() <= CLOSE


def test_librosa_agrees(everything: Floats) -> None:
    f = FRONT_END
    for window, unit in zip(everything, f.unit_images(everything), strict=True):
        mel = librosa.feature.melspectrogram(
            y=window, sr=f.sample_rate, n_fft=f.n_fft, hop_length=f.hop, n_mels=f.mels, center=False
        )
        # power_to_db(amin, ref=max, top_db) is our floor, reference and depth under other names
        db = librosa.power_to_db(mel, ref=np.max, amin=f.floor, top_db=f.range_db)
        assert np.abs((db.T / f.range_db + 1.0) - unit).max() <= CLOSE


def test_bands_are_librosas() -> None:
    theirs = librosa.filters.mel(sr=FRONT_END.sample_rate, n_fft=FRONT_END.n_fft, n_mels=FRONT_END.mels)
    np.testing.assert_allclose(FRONT_END.mel_matrix.T, theirs, atol=1e-7)


samples = st.floats(-1, 1, width=32)


@pytest.mark.parametrize(
    ("unit_images", "images"),
    [(FRONT_END.unit_images, FRONT_END.images), (frontend_compiled.unit_images, frontend_compiled.images)],
    ids=["scipy", "compiled"],
)
@given(
    npst.arrays(np.float32, st.tuples(st.integers(1, 11), st.just(64)), elements=samples, fill=samples),
    st.floats(1e-5, 10),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_a_window_alone_is_the_same_in_any_batch(
    unit_images: Callable[[Floats], Floats],
    images: Callable[[Floats], Image],
    seeds: Floats,
    gain: float,
    data: st.DataObject,
) -> None:
    batch = np.tile(seeds, (1, FRONT_END.samples // 64)) * np.float32(gain)
    i = data.draw(st.integers(0, len(batch) - 1))
    assert np.array_equal(unit_images(batch)[i], unit_images(batch[i : i + 1])[0])
    assert np.array_equal(images(batch)[i], images(batch[i : i + 1])[0])


@given(st.floats(0.25, 4.0), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_loudness_does_not_matter(gain: float, seed: int) -> None:
    window = np.random.default_rng(seed).standard_normal((1, FRONT_END.samples)).astype(np.float32)
    louder = FRONT_END.unit_images(window * np.float32(gain))
    assert np.abs(louder - FRONT_END.unit_images(window)).max() <= CLOSE


def test_images_fill_their_range() -> None:
    images = FRONT_END.images(sounds())
    assert images.dtype == np.uint8
    assert images.shape == (len(sounds()), *FRONT_END.shape)
    assert (images.max(axis=(1, 2)) == 255).all()  # the loudest cell of a window, silence included
    assert len(FRONT_END.images(np.empty((0, FRONT_END.samples), np.float32))) == 0


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        (np.zeros(FRONT_END.samples, np.float32), "must be"),
        (np.zeros((1, 16_000), np.float32), "15872"),
        (np.full((1, FRONT_END.samples), np.nan, np.float32), "NaN"),
        (np.full((1, FRONT_END.samples), np.inf, np.float32), "finite"),
    ],
)
def test_what_is_no_window_is_refused(windows: Floats, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FRONT_END.images(windows)


def test_every_field_is_in_the_fingerprint() -> None:
    seen = {FRONT_END.fingerprint}
    for field in dataclasses.fields(FrontEnd):
        changed = dataclasses.replace(FRONT_END, **{field.name: getattr(FRONT_END, field.name) + 1})
        seen.add(changed.fingerprint)
    assert len(seen) == 1 + len(dataclasses.fields(FrontEnd))
    assert FrontEnd().fingerprint == FRONT_END.fingerprint == "fe-0f994041ab61"


def test_other_sizes_work() -> None:
    other = FrontEnd(n_fft=1024, hop=125, frames=32, mels=40)
    window = np.random.default_rng(0).standard_normal((3, other.samples)).astype(np.float32)
    mel = librosa.feature.melspectrogram(
        y=window[1], sr=other.sample_rate, n_fft=1024, hop_length=125, n_mels=40, center=False
    )
    db = librosa.power_to_db(mel, ref=np.max, amin=other.floor, top_db=other.range_db)
    assert np.abs(db.T / other.range_db + 1.0 - other.unit_images(window)[1]).max() <= CLOSE


def test_reading_the_definition_imports_neither_scipy_nor_tensorflow() -> None:
    code = "import sys, twophase.audio.frontend; print({'scipy', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
