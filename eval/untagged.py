"""Where the trace and the answer of a reply without tags are: for models whose file says `trace: before_answer`.

The answer is the last sentence that names an option as an answer (`extract.decided`), and no other than the whole reply does.
Without one, or without options, it is the last box, or the last sentence that states an answer, else one that describes an
option, else a short line at the end or at the beginning, else the last line. What precedes it is the trace; where nothing does,
what follows it. Accuracy is read from the whole reply (`extract`). The time is linear in the length of the reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from eval.answer_options import Options
from eval.answer_sentences import stripped
from eval.answer_text import canonical
from eval.extract import decided, read_reply, states_answer
from eval.reply_parts import Part, parts
from fgrpo.response import Split
from rewards.content import is_contentless

_EXAMINED = 200  # sentences at each end of a reply; an answer stands nowhere else
_LONGEST = 2000  # characters of a sentence that may state an answer
_SHORT = 4  # words of a line that is an answer alone
_MORE = 1  # words of a bare answer beside the longest option's
_WORD = re.compile(r"[^\W_]+")
_BOXED = re.compile(r"\\boxed\s*\{")
_VAGUE = re.compile(
    r"\b(?:answer|choice|option|solution|conclusion|result)\b.{0,40}?\s(?:is|was|are|be|lies|comes)(?: \w+ly| quite| very)? (?:not|clear|obvious|"
    r"evident|unclear|based|simple|easy|straightforward|in the|found|seen|shown|visible|given|determined|derived|right there|hidden|"
    r"here|below|needed|required|asked|important|one of|either|among|what|that we|which|unknown|from)\b",
    re.IGNORECASE,
)
_SPECIAL = re.compile(r"(?:<\|[\w-]{1,30}\|>|</s>|<eos>)\Z")  # a token that ends a turn
_ELEMENT = re.compile(r"<([a-z_]+)>(.*)</\1>", re.DOTALL | re.IGNORECASE)
_LETTERED = re.compile(
    r"[\W_]*(?:(?:the )?(?:answer|option|choice)(?: is)?\W+)?(?:[A-Za-z]|yes|no)(?:[*_)\]]*[.:,;)][*_]*\s+|\s+[-–—]\s+|\s+(?=(?:because|since)\b))",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"\s*(?:[,;，；]\s*(?:and\s+)?(?=(?:so|thus|therefore|hence|also|daher|donc|por lo tanto|así que|quindi|portanto|поэтому)\b|所以|因此|故|答案)"
    r"|(?:->|=>|[→⇒]|[—–])\s*)",
    re.IGNORECASE,
)
_ITEM = re.compile(r"\W*(?:(?:[Oo]ption |[Cc]hoice )?[A-Z]|\d{1,2})[*_]*[.):]")  # a line of a list
_NO_SHORT = re.compile(r"\s*(?:[-*•+]\s|\d{1,2}[.)]\s|#)|.*[:?][\s*_]*$", re.DOTALL)


_Span = tuple[int, int]


def split(text: str, block: tuple[int, int] | None, choices: Sequence[str]) -> Split:
    """The trace and the answer of a reply without tags.

    Args:
        block: where its answer block stands; None if it has none.
        choices: the options; none for an open question.
    """
    while (token := _SPECIAL.search(text.rstrip()[-40:])) is not None:
        text = text.rstrip()[: -len(token.group())]
    options = Options(tuple(choices)) if choices else None
    if block is not None:
        before, after = parts(text, 0, block[0]), parts(text, block[1])
        inside = Part(*block, text[slice(*block)], -1)
        return _Reply(text, [*before, inside, *after], options).around(len(before), len(before))
    reply = _Reply(text, parts(text), options)
    place = reply.answer()
    return Split("", text.strip()) if place is None else reply.around(*place)


class _Reply:
    """A reply in its parts, and what the options make of each."""

    def __init__(self, text: str, found: list[Part], options: Options | None) -> None:
        self.text = text
        self.parts = found
        self.options = options
        self.examined = sorted({*range(len(found))[:_EXAMINED], *range(len(found))[-_EXAMINED:]})
        whole = None if options is None else read_reply(text, options)
        self.named: dict[int, bool] = {}  # part: whether it names the option as an answer
        if options is not None:
            for i in self.examined:
                one = decided(found[i].text, options) if len(found[i].text) <= _LONGEST else None
                if one is not None and whole in (None, one[0]):
                    self.named[i] = one[1]

    def answer(self) -> tuple[int, int] | None:
        """The first and the last part of the answer; None for a line that states none."""
        named = [i for i, is_named in self.named.items() if is_named]
        described = [i for i, is_named in self.named.items() if not is_named]
        short = self._short()
        after = [i for i in short if i > max(described, default=-1) and self.parts[i].text[-1].isalnum()]
        for places in (named, self._boxed(), self._stated(), after, described, short):
            if places:
                return places[-1], places[-1]
        lines = [i for i in range(len(self.parts)) if not (self.parts[i].is_signs or self.parts[i].closes)]
        of_last = [i for i in lines if self.parts[i].line == self.parts[lines[-1]].line]
        return (of_last[0], of_last[-1]) if of_last and of_last != lines else None

    def _boxed(self) -> list[int]:
        return [i for i in self.examined if _BOXED.search(self.parts[i].text)]

    def _stated(self) -> list[int]:
        """Parts that state an answer, or follow a heading of one."""
        found = []
        for i in self.examined:
            follows = i > 0 and self.parts[i - 1].leads and not (self.parts[i].closes or self.parts[i].is_signs)
            if follows or self._states(i):
                found.append(i)
        return found

    def _states(self, i: int) -> bool:
        text = self.parts[i].text
        return len(text) <= _LONGEST and states_answer(text) and not _VAGUE.search(text)

    def _short(self) -> list[int]:
        """The last line if it is short, else the first."""
        shown = [
            i for i in self.examined if not (self.parts[i].is_signs or self.parts[i].closes or self.parts[i].opens)
        ]
        for i in (*shown[-1:], *shown[:1]):
            if len(shown) > 1 and self._is_short(i):
                return [i]
        return []

    def _is_short(self, i: int) -> bool:
        part = self.parts[i]
        is_line = all(other.line != part.line for other in (*self.parts[max(0, i - 1) : i], *self.parts[i + 1 : i + 2]))
        return is_line and len(_WORD.findall(part.text)) <= _SHORT and not _NO_SHORT.match(part.text)

    def _is_bare(self, i: int) -> bool:
        """Whether a part is an answer and nothing else."""
        text = self.parts[i].text
        is_answer = self.named.get(i, False) if self.options is not None else self._states(i)
        if not is_answer:
            return False
        longest = max((len(own) for own in self.options.keys), default=0) + _MORE if self.options else _SHORT
        words = _WORD.findall(stripped(canonical(text))[0])
        return sum(word not in ("the", "a", "an", "boxed") for word in words) <= longest

    def _ends_list(self, i: int) -> bool:
        """Whether a part is the last line of a list."""
        return i > 0 and all(_ITEM.match(self.parts[at].text) for at in (i - 1, i))

    def _says_nothing(self, i: int) -> bool:
        return self.parts[i].is_signs or self.parts[i].leads or self._is_bare(i)

    def around(self, first: int, last: int) -> Split:
        """The trace before the answer in parts `first` to `last`, else after it."""
        start = first
        while start > 0 and self._says_nothing(start - 1) and not self._ends_list(start - 1):
            start -= 1
        if start == 0 and first > 0 and not self._is_bare(first) and any(map(self._is_bare, range(first))):
            last = first = first - 1  # "B. Reasoning: …, so B": the answer stands first
        skipped = len(list(takewhile(lambda i: self.parts[i].is_signs or self._is_bare(i), range(start))))
        closed = len(list(takewhile(lambda i: self.parts[i].closes, range(last + 1, len(self.parts)))))
        before, after = self._shown(skipped, start), self._shown(last + 1 + closed, len(self.parts))
        answer = self.parts[first].start, self.parts[last].end
        is_opening = all(self.parts[i].opens or self._says_nothing(i) for i in range(start))
        if not self._text(before) and first == last and not self._is_bare(first):
            before, answer, after = self._within(*answer, after)
        has_reasons = self._has_content(after)
        if self._text(before) and not (has_reasons and (is_opening or not self._has_content(before))):
            return Split(_inside(self._text(before)), self._text(answer))
        return Split(_inside(self._text(after)) if has_reasons else "", self._text(answer))

    def _within(self, start: int, end: int, after: _Span) -> tuple[_Span, _Span, _Span]:
        """Trace before, answer and trace after it, where one sentence holds a reason too: "B. The car …", "…, so B"."""
        sentence = self.text[start : min(end, start + _LONGEST)]
        if (label := _LETTERED.match(sentence)) and self._names(label.group().rstrip(" -–—:,;.")):
            cut = start + label.end()
            if self._has_content((cut, end)):
                return (start, start), (start, cut), (cut, after[1] if self._text(after) else end)
        clauses = list(_CLAUSE.finditer(sentence))
        first, then = clauses[-1].span() if clauses else (0, 0)
        if self._has_content((start, start + first)) and self._names(sentence[then:]):
            return (start, start + first), (start + then, end), after
        return (start, start), (start, end), after

    def _names(self, text: str) -> bool:
        """Whether a text names an option as an answer; without options, whether it states one."""
        if self.options is None:
            return states_answer(text)
        found = decided(text, self.options)
        return found is not None and found[1]

    def _shown(self, first: int, end: int) -> _Span:
        """Where parts stand, without signs around them, and without closing phrases at their end."""
        while first < end and self.parts[first].is_signs:
            first += 1
        while first < end and (self.parts[end - 1].is_signs or self.parts[end - 1].closes):
            end -= 1
        return (self.parts[first].start, self.parts[end - 1].end) if first < end else (0, 0)

    def _has_content(self, span: _Span) -> bool:
        return not is_contentless(self._text(span), " ".join(self.options.choices) if self.options else "")

    def _text(self, span: _Span) -> str:
        return self.text[slice(*span)].strip()


def _inside(text: str) -> str:
    """The content of a text that is one element: "<explanation>…</explanation>"."""
    element = _ELEMENT.fullmatch(text)
    return text if element is None else element[2].strip()
