"""The body of a chat completion, read without trust: choices with text, or a `BadReply` that says what is wrong.

A gateway may answer HTTP 200 with anything: a page, an event stream, another JSON document, an error, a message without text.
Each of these is a failed request and never an empty answer. `fgrpo.inference.failures` says which are requested again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fgrpo.inference.redaction import redact
from fgrpo.text import clean

Finish = Literal["stop", "length"]
NO_JSON, NO_COMPLETION = "no JSON", "no completion"  # a gateway without its server answers so
NO_TEXT, ODD_CHOICE, TOO_LONG = "no text", "odd choice", "reply too long"
WITHHELD = "withheld"  # by the model or a filter, which at temperature 0 do so again
_FILTERED = ("content_filter", "safety", "refusal")  # ends that the same text meets again
_REASONING_TYPES = ("reasoning", "thinking", "redacted_thinking", "reasoning_content", "reasoning_text")
_REASONING_KEYS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
_DEEPEST = 3  # parts within parts
_ROUNDED = 0.01  # above 0: what rounding may add to a log-probability
_LARGEST = 2**31  # past any count of tokens, token id or log-probability
QUOTA = "insufficient_quota"  # the code or type of a 429 that no wait resolves
LONGEST_WORDS = 500  # characters of a foreign message that are kept

_FINISHES: Mapping[str, Finish] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length"), "length"),
}
_CODES: Mapping[str, int] = {
    QUOTA: 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "too_many_requests": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "bad_request": 400,
    "server_error": 500,
    "internal_error": 500,
    "api_error": 500,
    "internalservererror": 500,
    "overloaded": 503,
    "overloaded_error": 503,
    "service_unavailable": 503,
    "timeout": 504,
}


@dataclass(frozen=True)
class Choice:
    """One continuation. `logprobs` are those of `token_ids`, where the server gives both.

    `reasoning` is what a reasoning parser took out of the text; `text` is empty only if the reply was cut off within its
    reasoning, which a server may hide.
    """

    text: str
    finish: Finish
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True)
class Reply:
    """The usable choices in their order, and (prompt, completion) tokens where the server reports them.

    `unusable`: what is wrong with each of the other choices that were requested. `prompt_ids`: the prompt as a vLLM server read it.
    """

    choices: tuple[Choice, ...]
    usage: tuple[int, int] | None = None
    unusable: tuple[BadReply, ...] = ()
    prompt_ids: tuple[int, ...] = ()


class BadReply(Exception):
    """HTTP 200 without a usable completion.

    `kind` is one of the constants above, or "HTTP <status>" for an error that a body with 200 reports. `code` is that error's
    own code ("insufficient_quota").
    """

    def __init__(self, kind: str, detail: str, status: int | None = None, code: str = "") -> None:
        super().__init__(detail)
        self.kind, self.detail, self.status, self.code = kind, detail, status, code


def read_reply(content: bytes, n: int = 1, *, takes_blank: bool = False, takes_cut_off: bool = False) -> Reply:
    """The reply in the body of an HTTP 200.

    Args:
        n: choices that were requested.
        takes_blank: whether blanks alone are a text, as where a request ends at a line break.
        takes_cut_off: whether a choice that ended at its limit before any text is one, without a sign of hidden reasoning too.

    Raises:
        BadReply: the body is no completion with `n` choices, or none of them is usable.
    """
    document = read_json(content)
    if not isinstance(document, dict):
        raise BadReply(NO_COMPLETION, f"JSON without a completion: {words_of(document)}")
    _raise_reported(document)
    choices = document.get("choices")
    if not isinstance(choices, list):
        raise BadReply(NO_COMPLETION, f"JSON without a completion: {words_of(document)}")
    ordered = sorted(choices, key=_index) if all(isinstance(choice, dict) for choice in choices) else choices
    if len(ordered) != n:
        raise BadReply(ODD_CHOICE, f"{n} continuations were requested and {len(ordered)} came")
    takes_cut_off = takes_cut_off or _has_reasoned(document.get("usage"))
    usable: list[Choice] = []
    unusable: list[BadReply] = []
    for choice in ordered:
        try:
            usable.append(_choice(choice, takes_blank, takes_cut_off))
        except BadReply as error:
            unusable.append(error)
    if not usable:
        raise unusable[0]
    prompt_ids = _token_ids(document.get("prompt_token_ids"))
    return Reply(tuple(usable), _usage(document.get("usage")), tuple(unusable), prompt_ids)


def read_json(content: bytes) -> Any:
    """The JSON document in a body. Raises BadReply if there is none."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadReply(NO_JSON, f"the reply is not UTF-8: {_start(content)!r}") from None
    except (ValueError, RecursionError):
        raise BadReply(NO_JSON, f"the reply is no JSON: {_start(content)!r}") from None


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, with content in parts joined; empty if there is none. Parts of reasoning are no text."""
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(part for part in content if not _is_reasoning(part))
    return redact(clean(content)) if isinstance(content, str) else ""


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The reasoning that a server returns beside the text, or as parts of the content; empty if there is none."""
    content = message.get("content")
    parts = [part for part in content if _is_reasoning(part)] if isinstance(content, list) else []
    held = (message.get(key) for key in _REASONING_KEYS)
    for found in (*held, parts):
        reasoning = found if isinstance(found, str) else _joined(found if isinstance(found, list) else [found])
        if reasoning.strip():
            return redact(clean(reasoning))
    return ""


def words_of(document: object) -> str:
    """What an error document says, in at most `LONGEST_WORDS` characters: its message if it has one, else all of it."""
    text = _message(document)
    if not text:
        try:
            text = json.dumps(document, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            text = f"a {type(document).__name__}"
    return redact(_one_line(clean(text)))[:LONGEST_WORDS]


def model_owners(content: bytes) -> dict[str, str]:
    """Owner ("vllm", "openai", "") of each model in the body of /models. Raises BadReply if it is no list of models."""
    document = read_json(content)
    listed = document.get("data") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise BadReply(NO_COMPLETION, f"no list of models: {words_of(document)}")
    models = [model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]
    return {redact(_one_line(clean(model["id"]))): str(model.get("owned_by") or "") for model in models}


def _one_line(text: str) -> str:
    """Foreign words for a message: on one line, without control characters (a terminal would obey them)."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:4000]).split())


def _choice(choice: Any, takes_blank: bool, takes_cut_off: bool) -> Choice:
    if not isinstance(choice, dict):
        raise BadReply(ODD_CHOICE, f"a choice without a message: {words_of(choice)}")
    _raise_reported(choice)
    message, reason = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict):
        raise BadReply(ODD_CHOICE, f"a choice without a message: {words_of(choice)}")
    finish = _FINISHES.get(reason.lower()) if isinstance(reason, str) else None
    text, reasoning = text_of(message), reasoning_of(message)
    has_text = bool(text if takes_blank else text.strip())
    is_filtered = isinstance(reason, str) and reason.lower() in _FILTERED
    is_cut_off = finish == "length" and (takes_cut_off or bool(reasoning) or _hides_reasoning(message))
    if not has_text and (not is_cut_off or message.get("refusal")):
        raise BadReply(WITHHELD if message.get("refusal") or is_filtered else NO_TEXT, _why_no_text(message, reason))
    if finish is None:
        raise BadReply(WITHHELD if is_filtered else NO_TEXT, f"the server ended with {words_of(reason)!r}")
    token_ids, logprobs = _token_ids(choice.get("token_ids")), _logprobs(choice.get("logprobs"))
    if token_ids and len(token_ids) != len(logprobs):
        raise BadReply(ODD_CHOICE, f"{len(token_ids)} tokens came with {len(logprobs)} log-probabilities")
    return Choice(text, finish, token_ids, logprobs, reasoning)


def _why_no_text(message: Mapping[str, Any], reason: object) -> str:
    if refusal := message.get("refusal"):
        return f"the model refused: {words_of(refusal)}"
    if isinstance(reason, str) and _FINISHES.get(reason.lower()) == "length":
        return "the reply ended at its token limit before any text; raise the limit on its tokens"
    return f"the message has no text (ended: {words_of(reason)})"


def _raise_reported(document: Mapping[str, Any]) -> None:
    """Raise what a document with HTTP 200 reports as an error, with the status that its code means."""
    error = document.get("error")
    if not error and not (document.get("object") == "error" or ("choices" not in document and "detail" in document)):
        return
    fields = error if isinstance(error, dict) else document
    values = [fields.get(key) for key in ("code", "status", "status_code", "type")]
    codes = [value for value in values if isinstance(value, str) and not value.isdigit()]
    code = QUOTA if QUOTA in codes else next(iter(codes), "")
    statuses = (_status(value) for value in values)
    status = next((status for status in statuses if status is not None), None)
    words = words_of(error if error else document)
    if status is None:
        raise BadReply(NO_COMPLETION, f"an error with HTTP 200: {words}")
    raise BadReply(f"HTTP {status}", words, status, code)


def _status(value: object) -> int | None:
    if isinstance(value, str):
        value = int(value) if len(value) == 3 and value.isdecimal() and value.isascii() else _CODES.get(value.lower())
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600 else None


def _message(document: object) -> str:
    if isinstance(document, str):
        return document
    if isinstance(document, dict):
        for key in ("message", "detail", "error", "msg"):
            if (found := document.get(key)) and (text := _message(found)):
                return text
    return ""


def _hides_reasoning(message: Mapping[str, Any]) -> bool:
    """Whether a message says that there is reasoning without showing it (encrypted or redacted parts)."""
    content = message.get("content")
    parts = [part for part in content if _is_reasoning(part)] if isinstance(content, list) else []
    return bool(parts) or any(message.get(key) for key in _REASONING_KEYS)


def _has_reasoned(usage: object) -> bool:
    """Whether the usage counts tokens of reasoning, as OpenAI's does; the message itself does not show them."""
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    tokens = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return type(tokens) is int and tokens > 0


def _is_reasoning(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in _REASONING_TYPES


def _joined(parts: Iterable[object], depth: int = 0) -> str:
    """The texts of parts, in order; a part of reasoning may hold parts itself."""
    return "".join(_part(part, depth) for part in parts)


def _part(part: object, depth: int) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    for key in ("text", "thinking", "reasoning", "summary", "content"):
        held = part.get(key)
        if isinstance(held, str):
            return held
        if isinstance(held, list) and depth < _DEEPEST and key != "content":
            return _joined(held, depth + 1)
    return ""


def _token_ids(found: object) -> tuple[int, ...]:
    if not found:
        return ()
    if not isinstance(found, list) or not all(type(token) is int and 0 <= token < _LARGEST for token in found):
        raise BadReply(ODD_CHOICE, "token ids that are no ids")
    return tuple(found)


def _logprobs(found: object) -> tuple[float, ...]:
    """Raises BadReply for a value that is null, NaN or infinite: a mean over the others would be another number."""
    items = found.get("content") if isinstance(found, dict) else None
    if not items:
        return ()
    values = [item.get("logprob") if isinstance(item, dict) else None for item in items] if _is_list(items) else [None]
    if not all(type(value) in (int, float) and -_LARGEST < value < _ROUNDED for value in values):  # type: ignore[operator]
        raise BadReply(ODD_CHOICE, "a log-probability that is no finite number")
    return tuple(float(value) for value in values)  # type: ignore[arg-type]


def _usage(found: object) -> tuple[int, int] | None:
    if not isinstance(found, dict):
        return None
    read, written = found.get("prompt_tokens"), found.get("completion_tokens") or 0
    is_count = type(read) is int and type(written) is int and 0 <= read < _LARGEST and 0 <= written < _LARGEST
    return (read, written) if is_count else None  # type: ignore[return-value]


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _is_list(found: object) -> bool:
    return isinstance(found, Sequence) and not isinstance(found, str)


def _start(content: bytes) -> str:
    return redact(clean(content[:4000].decode("utf-8", "replace")))[:100]
