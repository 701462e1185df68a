"""What tests of the device share: sounds, and what is said of them."""

import numpy as np

from twophase.device.clip import PCM, Heard

HEARD = Heard("porch", "2026-03-01T12:00:00.000+00:00", "trusted", "r-0123456789ab", "fe-0123456789ab", 2.5, 1.0, 3)


def noise(seed: int, seconds: float = 0.25) -> PCM:
    """A quarter of a second that no other seed has."""
    return np.random.default_rng(seed).integers(-8000, 8000, int(16_000 * seconds), np.int16)
