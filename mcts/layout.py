"""Layout in a line of reasoning: what says nothing (fences, rules, tables, titles), and marks around what says something.

One test decides what a title is, after the marks are gone: emphasis, heading marks, bullets and numbers. A line that ends as a
sentence does, or that names a region, is never a title. A count, a decimal number or a year at the start is no numbering.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HEADING, BULLET, NUMBER, EMPHASIS = "heading", "bullet", "number", "emphasis"
KINDS = (HEADING, BULLET, NUMBER, EMPHASIS)
_TITLE_WORDS = 20  # a marked line of more words says something, even without a verb that is known
_LEAD_WORDS = 8  # a line of at most so many words and a colon is a title without any mark

_COUNT = r"(?:\d{1,3}(?:\.\d{1,2})*|one|two|three|four|five|six|seven|eight|nine|ten)"
_LABEL = (
    rf"(?:(?:(?:reasoning|sub)[\s-]*)?(?:step|stage|phase)[\s_-]*(?:no\.?|#)?\s*(?:{_COUNT}|[ivx]{{1,4}}|[a-h])"
    rf"|(?:part|thought|reasoning|observation|point|reason|section|task|action)\s*#?\s*{_COUNT}"
    r"|(?:first|second|third|fourth|fifth|next|final|last)\s+step"
    r"|(?:步骤|步驟)\s*[\d一二三四五六七八九十]{1,3}|第\s*[\d一二三四五六七八九十]{1,3}\s*步)"
    r"(?![\w.]*\d)(?:\s*(?:of|/)\s*\d{1,3})?(?:\s*\([^()\[\]\d]{1,60}\))?"
)
_AFTER_LABEL = r"\s*(?:[:：;；、，)）|→]|[-=]>|,(?=\s+[A-Z])|\.(?=\s|$|[A-Z*<])|[–—]|-(?=\s))\s*"
_CAPITAL = r"(?=[A-Z<*#\"“\u4e00-\u9fff])"
_NUMBERING = (
    r"#?\d{1,2}(?:\.\d{1,2}){0,2}\s?[.)]{1,2}\s+"  # "3.5 metres" has no blank after its point
    rf"|\d{{1,2}}[.)]{_CAPITAL}|\d{{1,2}}[．）]|（\d{{1,2}}）"
    rf"|(?:\(\d{{1,2}}\)|\[\d{{1,2}}\])\s*{_CAPITAL}"
    r"|#?\d{1,2}[:：]\s+(?=\D)"
    rf"|\d{{1,2}}\s+[-–—]\s+{_CAPITAL}"
    r"|\d{1,2}、\s*|[①-⑳]\s*|\d\ufe0f?\u20e3\s*"
    rf"|(?:[IVX]{{1,4}}\.|\(?(?:[a-h]|[ivx]{{1,4}})[.)])\s+{_CAPITAL}"
    r"|[(#]?\d{1,2}\s*[.):、]*$"
)
_TAGS = r"b|strong|i|em|u|s|p|div|span|center|font|small|big|mark|code|pre|br|hr|details|summary|section|step|reasoning"
_SYMBOLS = (
    r"\u2190-\u21ff\u2300-\u23ff\u2500-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff"  # arrows, shapes, dingbats, emoji
)


class _Mark(NamedTuple):
    kind: str
    is_whole: bool  # whether it marks the whole line, as a title has it
    pattern: re.Pattern[str]
    inside: str  # what stays of the match


def _mark(kind: str, pattern: str, inside: str = "", *, is_whole: bool = True) -> _Mark:
    return _Mark(kind, is_whole, re.compile(pattern), inside)


def _any_case(pattern: str) -> str:
    """`pattern` of words in any case."""
    return rf"(?i:{pattern})"


_MARKS = (
    _mark(HEADING, r"^(?:#+(?=\s|$|[^\s#\d])|#{2,}(?=\d))\s*(.*?)(?:\s+#+)?$", r"\1"),  # "#1 in the list" stays
    _mark(HEADING, r"^[-=]{2,}+\s*+([^\s=-](?:.*[^\s=-])?)\s*+[-=]{2,}$", r"\1"),
    _mark(HEADING, r"^\\(?:sub)*(?:section|paragraph|chapter|title)\*?\{([^{}]*)\}\s*", r"\1 "),
    _mark(HEADING, _any_case(r"^<(h[1-6])\b[^<>]*>(.*?)</\1>\s*"), r"\2 "),
    _mark(EMPHASIS, rf"^\*{{2,3}}\s*({_any_case(_LABEL)})\s*\*{{2,3}}\s+{_CAPITAL}", r"\1: ", is_whole=False),
    _mark(
        HEADING,
        rf"^\*{{2,3}}\s*{_any_case(_LABEL)}{_AFTER_LABEL}[^*.!?\[<\s][^*.!?\[<]*\*{{2,3}}\s*[:.–—-]?\s*(?=[A-Z<\d])",
    ),
    _mark(EMPHASIS, r"(?<=[.!?。！？])(\*{2,}|__)\s*[.:]$", r"\1", is_whole=False),
    _mark(EMPHASIS, r"^\*{2,}\s*([^*]*[^*\s])\s*\*{2,}\s*([:.：]?)$", r"\1\2"),
    _mark(EMPHASIS, r"^(\*|_{1,3}|~~|`)(?=[^\s*_~])((?:(?!\1).)*[^\s*_~])\1\s*([:.：]?)$", r"\2\3"),
    _mark(EMPHASIS, _any_case(rf"^<({_TAGS})\b[^<>]*>(.*)</\1>\s*([:.：]?)$"), r"\2\3"),
    _mark(EMPHASIS, r"^\\(?:textbf|textit|emph|underline|text)\{([^{}]*)\}\s*([:.：]?)$", r"\1\2"),
    _mark(BULLET, r"^(?:[-*+•●○◦·‣▪▫■□–—→]|[-=]>|>+)\s+(?:\[[ xX]\]\s+)?(?=\S)"),
    _mark(BULLET, rf"^(?:(?:[{_SYMBOLS}]\ufe0f?)+\s+(?=\S)|[•●○◦‣▪▫■□]\s*|(?:>+|-)\s*(?=[A-Z<*\"“\u4e00-\u9fff]))"),
    _mark(BULLET, r"^\\item\b\s*"),
    _mark(BULLET, _any_case(r"</?(?:li|ul|ol)\b[^<>]*>")),
    _mark(NUMBER, rf"^(?:\({_any_case(_LABEL)}\)|\[{_any_case(_LABEL)}\])\s*[:.–—-]?\s*"),
    _mark(NUMBER, rf"^(?:{_any_case(_LABEL)}(?:{_AFTER_LABEL}|\s*$)|{_any_case('step')}\s*[:：]\s*|{_NUMBERING})"),
    _mark(EMPHASIS, r"(?<!\w)\*{2,}|\*{2,}(?!\w)", is_whole=False),
    _mark(EMPHASIS, r"(?<![\w*])\*(?=[^\s*])([^*]*[^\s*])\*(?![\w*])", r"\1", is_whole=False),
    _mark(EMPHASIS, r"(?<!\w)(_{1,3}|~~|`)(?=[^\s_~])((?:(?!\1).)*[^\s_~])\1(?!\w)", r"\2", is_whole=False),
    _mark(EMPHASIS, _any_case(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>"), is_whole=False),
    _mark(EMPHASIS, r"\\(?:textbf|textit|emph|underline)\{([^{}]*)\}", r"\1", is_whole=False),
    _mark(BULLET, r"^\*(?=[A-Z])"),
)
_FENCE = re.compile(r"```|^[\s>*+-]*(?:~~~|\'\'\'|\"\"\")|^\s*\\(?:begin|end)\{")
_RULE = re.compile(
    r"\\(?:hline|hrule|newpage|noindent|\w+skip|\w+rule|centering)\s*|<!--.*-->"
    rf"|(?:</?(?:{_TAGS}|ul|ol|li)(?:\s[^<>]*)?/?>\s*)+"
)
_SAYS = re.compile(r"[^\W_]")  # a letter or a digit of any script
_TABLE = re.compile(r"\|(?:.*\||.*[^.!?])|</?(?:table|tr|td|th)\b.*")
_REGION = re.compile(r"[\[【]|<[\w|]|\(\s*[+-]?[\d.]+\s*,|_2d")
_SENTENCE_END = re.compile(r"[.!?…。！？][)\]\"'”’»]*$")
_NAMES = re.compile(
    r"[\[(【]?(?:(?:the|my|our)\s+)?(?:(?:final|initial|overall|visual|spatial|step[- ]by[- ]step)\s+)?"
    r"(?:reasoning|analysis|thoughts?|thinking|thought process|explanation|observations?|conclusions?|summary|answer|solution"
    r"|results?|steps?|approach|method|plan|verification|evidence|question|context|background|introduction|step[- ]by[- ]step"
    r"|chain of thought|reasoning (?:steps?|process|chain)|推理|分析|思考|结论|答案|最终答案)[\])】]?\s*[:：.]*",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|does|did|can|cannot|will|would|should|must|seems?|appears?|shows|stands|lies|sits|looks"
    r"|means|contains|remains|\w+n[’']t|it[’']s|there[’']s|that[’']s)\b|是",
    re.IGNORECASE,
)
_ASKS = re.compile(r"(?:what|which|where|how|why|who|when)\b", re.IGNORECASE)


class Plain(NamedTuple):
    """A line without its marks, the kinds of these, and whether one of them marked the whole line."""

    text: str
    kinds: tuple[str, ...]
    is_marked: bool


def plain(line: str) -> Plain:
    """`line` without marks of layout, however they are nested."""
    text, kinds, is_marked = line.strip(), set(), False
    while found := next((mark for mark in _MARKS if mark.pattern.search(text)), None):
        text = found.pattern.sub(found.inside, text).strip()
        kinds.add(found.kind)
        is_marked = is_marked or found.is_whole
    return Plain(text, tuple(kind for kind in KINDS if kind in kinds), is_marked)


def problem(line: str) -> str | None:
    """What a line is instead of reasoning: "code_fence", "rule", "table" or "heading"; None if it says something."""
    text = line.strip()
    if _FENCE.search(text):
        return "code_fence"
    if _RULE.fullmatch(text) or not (_SAYS.search(text) or text.startswith("#")):
        return "rule"
    if _TABLE.fullmatch(text):
        return "table"
    found = plain(text)
    return "heading" if _is_title(found.text, found.is_marked) else None


def _is_title(text: str, is_marked: bool) -> bool:
    """Whether a line without marks says nothing: a known name, a short lead to a colon, or a marked line without a verb."""
    if not _SAYS.search(text) or _NAMES.fullmatch(text):
        return True
    if _REGION.search(text) or _SENTENCE_END.search(text):
        return False
    words = len(text.split())
    if text.endswith((":", "：")):
        return words <= (_TITLE_WORDS if is_marked else _LEAD_WORDS)
    return is_marked and words <= _TITLE_WORDS and (not _VERB.search(text) or bool(_ASKS.match(text)))
