"""Replies that are a JSON object with keys for reasoning and answer, in a fence or after other text, of models without tags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_ANSWER_KEYS = (
    *(
        "final_answer",
        "answer",
        "choice",
        "option",
        "final_choice",
        "selected_option",
        "correct_answer",
        "correct_option",
    ),
    *(
        "answer_choice",
        "selected_answer",
        "answer_letter",
        "selected_choice",
        "selection",
        "letter",
        "final",
        "prediction",
    ),
    *(
        "label",
        "response",
        "result",
        "output",
        "conclusion",
        "答案",
        "antwort",
        "respuesta",
        "réponse",
        "resposta",
        "risposta",
    ),
)  # the first one that is there counts
_TRACE_KEYS = re.compile(
    r"reason|explanation|explain|thought|think|analysis|rationale|steps?$|chain|cot$|justification|observation|description|"
    r"evidence|details?$|solution|working|deduction|caption|推理|理由|思考|分析|解释|原因"
)
_NO_TRACE_KEYS = re.compile(r"question|options|choices|confidence|score|format|image$|id$")
_SECOND = re.compile(r"^(?:alternative|second|other|backup)")
_OPENING = re.compile(r"(?:^|(?<=\s))[\[{]")
_FENCE = re.compile(r"```[\w-]{0,20}\Z")
_LATEX = re.compile(
    r"(?<!\\)\\(?=(?:boxed|fbox|frac|text(?:bf|it|rm)?)\s*\{)"
)  # one backslash, which JSON reads otherwise
_ESCAPE = re.compile(r'\\(["\\/bfnrtu]?)')
_KEY = re.compile(r"""(["'])(\w[\w ]{0,40})\1\s*:""")
_AROUND = " \t\r\n\"',[]{}`"  # around a text in JSON
_DEEPEST = 3  # objects around the one with the answer
_LEAST_WORDS = 2  # of a text under another key that counts as reasoning


class Keyed(NamedTuple):
    """A reply by its keys; the object is text[start:end]."""

    think: str
    answer: str
    start: int
    end: int


def read(text: str) -> Keyed | None:
    """The reply whose JSON object has a key for the answer; None for every other text. It never raises."""
    if "{" not in text:
        return None
    places = [match.start() for match in _OPENING.finditer(text)]
    for start in dict.fromkeys((*places[:1], *places[-1:])):
        found, end = _object(text, start)
        if not found and not _without_fence(text[:start]):
            found, end = _listed(text, start)
        if found and (answer := _answer(found)) is not None:
            another, _ = _object(text, places[0]) if start > places[0] else ({}, 0)
            return Keyed(_trace(found) or _trace(another), answer, start, end)
    return None


def _without_fence(text: str) -> str:
    """The text before an object, without the fence that opens it."""
    shown = text.strip()
    fence = _FENCE.search(shown[-24:])
    return shown if fence is None else shown[: -len(fence.group())].strip()


def _listed(text: str, start: int) -> tuple[dict[str, str], int]:
    """The texts by key of what only resembles JSON (other quotes, a comma too many, or no end), and its end."""
    end = text.rfind("}") + 1 or len(text)
    keys = list(_KEY.finditer(text, start, end))
    ends = [match.start() for match in keys[1:]] + [end]
    return {key[2]: text[key.end() : at].strip(_AROUND) for key, at in zip(keys, ends, strict=False)}, end


def _object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """The object at `start`, or the innermost one of objects and lists of one member around it, and its end; ({}, 0): none."""
    value, end = _decoded(text[start:])
    for _ in range(_DEEPEST):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        elif isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict | list):
            value = next(iter(value.values()))
    return (value, start + end) if isinstance(value, dict) else ({}, 0)


def _decoded(text: str) -> tuple[Any, int]:
    """The value with which `text` begins, and its length."""
    latex = _LATEX.sub(r"\\\\", text)
    for form in (latex, _ESCAPE.sub(lambda m: m.group() if m.group(1) else r"\\", latex)):
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(form)
        except (ValueError, RecursionError):  # no JSON, or LaTeX without escapes in it, or nested without end
            continue
        return value, end if form == text else text.rfind(form[end - 1]) + 1
    return None, 0


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip()).strip("_").lower()


def _answer(found: Mapping[str, Any]) -> str | None:
    """The text under the first key of an answer; None without one, or beside a second answer."""
    by_key = {_key(name): value for name, value in found.items()}
    if any(map(_SECOND.search, by_key)):
        return None
    for key in _ANSWER_KEYS:
        if key in by_key and (texts := list(_texts(by_key[key]))):
            return "\n".join(texts)
    return None


def _trace(found: Mapping[str, Any]) -> str:
    """The texts under keys of reasoning, else under all keys that name neither an answer nor the question."""
    named = [value for name, value in found.items() if _is_trace_key(_key(name))]
    if not named:
        named = [
            value
            for name, value in found.items()
            if _key(name) not in _ANSWER_KEYS and not _NO_TRACE_KEYS.search(_key(name))
        ]
        named = [value for value in named if len(" ".join(_texts(value)).split()) >= _LEAST_WORDS]
    return "\n".join(text for value in named for text in _texts(value))


def _is_trace_key(key: str) -> bool:
    return key not in _ANSWER_KEYS and _TRACE_KEYS.search(key) is not None and not _NO_TRACE_KEYS.search(key)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts and numbers of a value, in order; nothing deeper than a few levels."""
    if isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, str | int | float):
        if text := str(value).strip():
            yield text
    elif depth < _DEEPEST and isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _texts(member, depth + 1)
