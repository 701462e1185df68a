"""Very many requests that nobody would send. The issue asks for `make test-faults SEEDS=100000 ARGS="-k fuzzed"`."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from tests.local.test_fuzz import SETTINGS, Request, check, requests
from twophase.local.app import Platform


@pytest.fixture
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    found = Platform(tmp_path_factory.mktemp("fuzzed"))
    yield found
    found.close()


@pytest.mark.faults
@pytest.mark.timeout(0)
def test_every_one_of_very_many_is_answered_or_refused(platform: Platform) -> None:
    @settings(SETTINGS, max_examples=int(os.environ.get("SEEDS", "4")), database=None)
    @given(request=requests())
    def ask(request: Request) -> None:
        check(platform, request)

    ask()
