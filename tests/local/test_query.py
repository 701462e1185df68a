"""Filters and orders of lists: any text selects or is refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase.local.query import selected
from twophase.serving.refusal import Refusal

ITEMS = [
    {"displayName": "pair", "labels": {"stage": "prod"}, "trafficSplit": {"7": 100}, "versionAliases": ["default"]},
    {"displayName": "other", "labels": {}, "createTime": "2026-11-22T00:00:00Z"},
]
WORDS = (
    'display_name labels.stage traffic_split.7 version_aliases = != : < >= "pair" "*" prod 100 AND OR NOT ( ) \\ " *'
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('display_name="pair"', [0]),
        ("display_name=p*", [0]),
        ("labels.stage:* OR create_time>2026", [0, 1]),
        ("NOT labels.stage=prod", [1]),
        ("traffic_split.7:10", [0]),
        ("traffic_split.7>=100 AND (version_aliases:default)", [0]),
        ("display_name:the", [1]),
    ],
)
def test_what_a_filter_keeps(text: str, kept: list[int]) -> None:
    assert selected(ITEMS, {"filter": text}) == [ITEMS[i] for i in kept]


@given(st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join) | st.text(max_size=12))
def test_any_text_selects_or_is_refused(text: str) -> None:
    for field in ("filter", "orderBy"):
        with suppress(Refusal):
            assert all(item in ITEMS for item in selected(ITEMS, {field: text}))


def test_a_bottomless_filter_is_refused() -> None:
    for text in ("NOT " * 16_000 + "a=b", "(" * 16_000):
        with pytest.raises(Refusal, match="cannot be read"):
            selected(ITEMS, {"filter": text})
