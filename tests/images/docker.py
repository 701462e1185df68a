"""The container engine, as its command line."""

import subprocess


def docker(*arguments: str, given: bytes = b"") -> str:
    """What it says; fails the test with what it complains of."""
    done = subprocess.run(["docker", *arguments], input=given, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()
