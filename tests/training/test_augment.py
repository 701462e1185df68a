import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.audio.frontend import FRONT_END
from twophase.errors import UsageError
from twophase.training.augment import RANGE_DB, Augment

EVERYTHING = Augment(
    shift_frames=8,
    background_probability=0.5,
    tilt_db=6.0,
    quiet_probability=0.5,
    mixup_alpha=0.2,
    time_masks=2,
    time_mask_frames=8,
    freq_masks=2,
    freq_mask_mels=8,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def levels(n=8, low=0, high=256, seed=1):
    images = rng(seed).integers(low, high, (n, 61, 64), dtype=np.uint8)
    images[:, 30, 30] = 255
    return images


def one_hot(n=8):
    return np.eye(3, dtype=np.float32)[np.arange(n) % 3]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nothing_asked_for_is_nothing_done(dtype):
    batch, labels = levels().astype(dtype), one_hot()
    out, same = Augment()(batch, labels, rng())
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, batch)
    assert same is labels


def test_the_generator_alone_decides_and_the_input_stays():
    batch, labels, background = levels(), one_hot(), levels(seed=2)
    kept = batch.copy(), labels.copy(), background.copy()
    first, again, other = (EVERYTHING(batch, labels, rng(seed), background) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()
    for now, before in zip((batch, labels, background), kept, strict=True):
        np.testing.assert_array_equal(now, before)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_images_stay_images(n, seed):
    batch = levels(n, seed=seed)
    out, labels = EVERYTHING(batch, one_hot(n), rng(seed), levels(n, seed=seed + 1))
    assert out.shape == batch.shape
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 255.001
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)


def test_shift_moves_the_sound_and_never_wraps_it():
    batch = levels(64, low=20)
    out, _ = Augment(shift_frames=5)(batch, None, rng())
    seen = set()
    for image, shifted in zip(batch.astype(np.float32), out, strict=True):
        for by in range(-5, 6):
            expected = np.full_like(image, image.min())
            expected[max(by, 0) : 61 + min(by, 0)] = image[max(-by, 0) : 61 - max(by, 0)]
            if np.array_equal(shifted, expected):
                seen.add(by)
                break
        else:
            pytest.fail("no shift within 5 frames explains the image")
    assert seen == set(range(-5, 6))


def test_a_shift_that_loses_the_maximum_restores_it():
    batch = np.full((16, 61, 64), 100, np.uint8)
    batch[:, 0] = 255  # the only loud frame
    out, _ = Augment(shift_frames=3)(batch, None, rng())
    assert (out.max(axis=(1, 2)) == 255).all()


def test_tilt_is_a_ramp_over_the_mels():
    batch = levels(64, low=60, high=200)
    out, _ = Augment(tilt_db=6.0)(batch, None, rng())
    change_db = (out - batch) / 255 * RANGE_DB
    np.testing.assert_allclose(change_db, change_db[:, :1] + np.zeros((61, 1)), atol=1e-3)  # the same in every frame
    np.testing.assert_allclose(np.diff(change_db, n=2, axis=2), 0, atol=1e-3)  # a straight line over mels
    ends = change_db[:, 0, -1] - change_db[:, 0, 0]
    assert np.abs(ends).max() <= 6.001
    assert ends.min() < -4
    assert ends.max() > 4


@settings(max_examples=25, deadline=None)
@given(st.floats(-10, 40), st.integers(0, 1000))
def test_background_is_added_in_power(snr_db, seed):
    batch, background = levels(4, seed=seed), levels(4, seed=seed + 1)
    out, _ = Augment(background_probability=1.0, background_snr_db=(snr_db, snr_db))(batch, None, rng(), background)
    x, b = (i.astype(np.float64) / 255 * FRONT_END.range_ln for i in (batch, background))
    gain = np.log(np.exp(x).mean(axis=(1, 2)) / np.exp(b).mean(axis=(1, 2))) - snr_db * np.log(10) / 10
    mixed = np.logaddexp(x, b + gain[:, None, None]) / FRONT_END.range_ln * 255
    mixed += 255 - mixed.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(out, np.maximum(mixed, 0), atol=0.01)


def test_background_in_images_is_background_in_sound():
    t = np.arange(FRONT_END.samples) / FRONT_END.sample_rate
    tone = sum(np.sin(2 * np.pi * f * t) * np.exp(-3 * t) for f in (440, 880, 1320)).astype(np.float32)
    noise = rng().normal(0, 1, t.size).astype(np.float32)

    def mel_power(x):  # of the window's spectrum, as the front end sees it
        frames = np.lib.stride_tricks.sliding_window_view(x, FRONT_END.n_fft)[:: FRONT_END.hop] * FRONT_END.hann
        return (np.abs(np.fft.rfft(frames)) ** 2 @ FRONT_END.mel_matrix).mean()

    noise *= np.float32(np.sqrt(mel_power(tone) / mel_power(noise) / 10))  # 10 dB below the tone
    heard = FRONT_END.images((tone + noise)[None]).astype(np.float32)
    images = FRONT_END.images(np.stack([tone, noise]))
    mixed, _ = Augment(background_probability=1.0, background_snr_db=(10, 10))(images[:1], None, rng(), images[1:])
    apart_db = (mixed - heard) / 255 * RANGE_DB
    assert abs(np.median(apart_db)) < 0.5
    assert np.percentile(np.abs(apart_db), 90) < 2.0  # the rest is tone and noise of one strength, in and out of phase


def test_a_background_ends_with_the_sound_that_it_is_behind() -> None:
    batch, background = levels(4), np.full((4, 61, 64), 255, np.uint8)
    batch[:, 20:] = 0
    batch[0] = 0  # nothing at all
    out, _ = Augment(background_probability=1.0, background_snr_db=(0, 0))(batch, None, rng(), background)
    assert np.isfinite(out).all()
    assert not out[1:, 20:].any()
    assert (out[1:, :20] > 0).all()


def test_background_goes_to_its_share_of_the_images():
    batch = levels(400, high=100)
    out, _ = Augment(background_probability=0.3, background_snr_db=(0, 0))(batch, None, rng(), levels(400, seed=2))
    assert 0.2 < (out != batch).any(axis=(1, 2)).mean() < 0.4


def test_a_quiet_image_is_one_of_a_quiet_sound() -> None:
    t = np.arange(FRONT_END.samples) / FRONT_END.sample_rate
    tone = (sum(0.1 * np.sin(2 * np.pi * f * t) * np.exp(-6 * t) for f in (300, 900, 2700))).astype(np.float32)
    loud, faint = (FRONT_END.images((tone * gain)[None]) for gain in (1.0, 0.03))
    floor_db = float(faint.min()) / 255 * RANGE_DB
    assert 3 < floor_db < 35
    images = np.repeat(loud, 400, axis=0)
    out, _ = Augment(quiet_probability=0.5, quiet_db=40.0)(images, None, rng())
    touched = (out != images).any(axis=(1, 2))
    assert 0.4 < touched.mean() < 0.6
    nearest = out[np.abs(out.min(axis=(1, 2)) - faint.min()).argmin()]
    assert np.abs(nearest - faint[0]).max() < 4  # levels of 255


def test_masks_hide_runs_of_frames_and_mels_behind_the_mean():
    batch = levels(200, low=60, high=200)
    augment = Augment(time_masks=1, time_mask_frames=6, freq_masks=1, freq_mask_mels=9)
    out, _ = augment(batch, None, rng())
    mean = batch.mean(axis=(1, 2), dtype=np.float64)
    widths = set()
    for image, masked, value in zip(batch, out, mean, strict=True):
        hidden = np.abs(masked - value) < 1e-2
        frames, mels = np.flatnonzero(hidden.all(axis=1)), np.flatnonzero(hidden.all(axis=0))
        for run, widest in ((frames, 6), (mels, 9)):
            assert len(run) <= widest
            assert len(run) == 0 or run[-1] - run[0] + 1 == len(run)
        open_cells = np.ones((61, 64), bool)
        open_cells[frames] = open_cells[:, mels] = False
        np.testing.assert_array_equal(masked[open_cells], image[open_cells])
        widths.add((len(frames), len(mels)))
    assert {frames for frames, _ in widths} == set(range(7))
    assert {mels for _, mels in widths} == set(range(10))


def test_a_mask_wider_than_the_image_is_as_wide_as_the_image():
    out, _ = Augment(time_masks=3, time_mask_frames=1000)(levels(), None, rng())
    assert out.shape == (8, 61, 64)


def test_mixup_mixes_images_and_labels_alike():
    n = 32
    batch = np.repeat(np.arange(n, dtype=np.uint8) * 8, 61 * 64).reshape(n, 61, 64)
    labels = np.eye(n, dtype=np.float32)
    out, mixed = Augment(mixup_alpha=0.4)(batch, labels, rng())
    np.testing.assert_allclose(out[:, 0, 0], mixed @ (np.arange(n) * 8), rtol=1e-4, atol=1e-3)
    assert mixed.dtype == np.float32
    assert (np.count_nonzero(mixed, axis=1) == 2).any()


def test_mixup_takes_the_labels_of_a_binary_problem():
    _, mixed = Augment(mixup_alpha=0.4)(levels(), np.arange(8, dtype=np.float32) % 2, rng())
    assert mixed.shape == (8,)
    assert ((mixed >= 0) & (mixed <= 1)).all()


@pytest.mark.parametrize("labels", [None, np.arange(8), np.eye(8, dtype=bool)])
def test_mixup_refuses_labels_that_have_no_mean(labels):
    with pytest.raises(UsageError, match="one-hot"):
        Augment(mixup_alpha=0.2)(levels(), labels, rng())


@pytest.mark.parametrize("background", [None, levels(7), np.zeros((8, 61, 32), np.uint8)])
def test_background_must_be_there_and_fit(background):
    with pytest.raises(UsageError, match=r"\[8, 61, 64\]"):
        Augment(background_probability=0.5)(levels(), None, rng(), background)


def test_a_batch_with_channels_is_refused():
    with pytest.raises(UsageError, match=r"\[n, frames, mels\]"):
        Augment(tilt_db=1)(levels()[..., None], None, rng())


@pytest.mark.parametrize(
    "bad",
    [
        {"shift_frames": -1},
        {"tilt_db": float("nan")},
        {"mixup_alpha": float("inf")},
        {"background_probability": 1.5},
        {"background_snr_db": (10, 0)},
        {"background_snr_db": (float("nan"), 0)},
        {"background_snr_db": (0, float("inf"))},
    ],
)
def test_impossible_strengths_are_refused_by_name(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        Augment(**bad)
