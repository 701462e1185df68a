"""`filter` and `orderBy` of list methods: the part of AIP-160 and AIP-132 that Vertex AI documents.

display_name="x" AND labels.stage:prod      = != : < > <= >=, AND, OR, NOT, parentheses, * at the end of a text
create_time desc, display_name
"""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twophase.files import JSON
from twophase.serving.refusal import Refusal

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')|(?P<op>!=|<=|>=|[=<>:()])|(?P<word>[^\s=<>:()!"\']+))'
)
_MOST_NESTED = 50
_Test = Callable[[JSON], bool]


def selected(items: list[JSON], request: JSON) -> list[JSON]:
    """The items that `request.filter` keeps, as `request.orderBy` orders them. Raises `Refusal`."""
    if request.get("filter"):
        test = _Parser(request["filter"]).test()
        items = [item for item in items if test(item)]
    for term in reversed([t.strip() for t in request.get("orderBy", "").split(",") if t.strip()]):
        match = re.fullmatch(r"([\w.]+)(?:\s+(asc|desc))?", term)
        if not match:
            raise Refusal(400, f"orderBy: {term!r} is no order; give a field, and desc where wanted")
        field = match[1]
        items = sorted(items, key=lambda item: str(_value(item, field) or ""), reverse=match[2] == "desc")
    return items


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if not match:
                raise self._refusal()
            self._tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()
        if sum(token in ("(", "NOT") for _, token in self._tokens) > _MOST_NESTED:
            raise self._refusal()

    def test(self) -> _Test:
        found = self._any()
        if self._at != len(self._tokens):
            raise self._refusal()
        return found

    def _any(self) -> _Test:
        tests = [self._every()]
        while self._take("word", "OR"):
            tests.append(self._every())
        return lambda item: any(test(item) for test in tests)

    def _every(self) -> _Test:
        tests = [self._term()]
        while self._take("word", "AND") or (self._at < len(self._tokens) and self._peek() not in (")", "OR")):
            tests.append(self._term())
        return lambda item: all(test(item) for test in tests)

    def _term(self) -> _Test:
        if self._take("word", "NOT"):
            inner = self._term()
            return lambda item: not inner(item)
        if self._take("op", "("):
            found = self._any()
            if not self._take("op", ")"):
                raise self._refusal()
            return found
        kind, field = self._next()
        if kind != "word":
            raise self._refusal()
        if self._peek() not in ("=", "!=", ":", "<", ">", "<=", ">="):
            raise self._refusal()
        _, operator = self._next()
        kind, literal = self._next()
        if kind == "op":
            raise self._refusal()
        text = re.sub(r"\\(.)", r"\1", literal[1:-1]) if kind == "text" else literal
        return lambda item: _compare(_value(item, field), operator, text)

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise self._refusal()
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, kind: str, token: str) -> bool:
        found = self._at < len(self._tokens) and self._tokens[self._at] == (kind, token)
        self._at += found
        return found

    def _refusal(self) -> Refusal:
        return Refusal(400, f'filter: {self._text!r} cannot be read; such as display_name="x" AND labels.stage=prod is')


def _value(item: JSON, field: str) -> Any:
    """A field by its API name, `display_name` or `displayName`; a resource's own name also stands for its id."""
    value: Any = item
    for i, step in enumerate(field.split(".")):
        if not isinstance(value, dict):
            return None
        camel = re.sub(r"_([a-z0-9])", lambda m: m[1].upper(), step) if i == 0 else step
        value = value.get(camel, value.get(step))
    return value


def _compare(value: Any, operator: str, text: str) -> bool:
    if operator == ":":  # has: a key of a map, an item of a list, a part of a text
        return value is not None and (
            text == "*" or text in (value if isinstance(value, dict | list) else _text(value))
        )
    if operator in ("=", "!="):
        same = str(value).startswith(text[:-1]) if text.endswith("*") and value is not None else _text(value) == text
        return same == (operator == "=")
    if value is None:
        return False
    left: Any = _text(value)
    right: Any = text
    with suppress(ValueError):
        left, right = float(left), float(right)
    return bool({"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}[operator])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
