"""Text that addresses a judge: verdicts, labels, commands and role markers inside a trace. Flagged and counted, never scored.

A flag is a hint for a reader: the fence, the labels' suffix and the blind form (docs/judge_validation.md) protect the verdict.
"""

from __future__ import annotations

import re

from fgrpo.visible_text import as_seen, latin_lookalikes

_LABEL = r"(?:IN)?CONSISTENT|(?:IN)?CORRECT"
_WORD = r"(?:in)?consistent|(?:in)?correct|skip"
_JUDGE = "judge|grader|evaluator|rater"
_PRAISE = "right|true|valid|good|accurate|grounded|supported|sound|passed|perfect"
_NOUN = r"[\"'*]? +(?!(?:for|as|on|to|in|at|always|here|now|please|and|or|if|regardless|no|whatever)\b)[a-z]"  # "the correct option"
_PATTERNS = (
    rf"\b(?:{_LABEL})\b",  # labels as the rubric writes them
    r"(?i:\b(?:label|verdict)[\"']?\s*[:=]|[\"']why[\"']\s*[:=])",
    rf"(?i:\b(?:verdict|label|grade|rating)s?\s+(?:is|are|was|should be|must be)\s+[\"'*]*(?:{_WORD}|[a-z0]\b|yes|no))",
    r"(?i:\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:instructions?|rubric|prompt|rules|above|before|previous)\b)",
    rf"(?i:\b(?:reply|respond|output|return|print|say|write|choose|label it)\b[^.\n]{{0,20}}?[\"'* :](?:{_WORD})\b(?!{_NOUN}))",
    rf"(?i:\b(?:note|message|memo|dear|hello|hey|attention)\b[\s,:]+(?:to\s+)?(?:the\s+)?(?:{_JUDGE})\b(?!['’]s))",
    rf"(?im:(?:^|[.!?:]\s)\W{{0,4}}to\s+(?:the\s+)?(?:{_JUDGE})\s*[:,])",
    rf"(?i:\b(?:grade|mark|rate|score|label|judge|count|treat)\s+(?:this|it|that|them|me|my|the|all|every)\b[^.\n]{{0,30}}?\bas\s+[\"'*]*(?:{_WORD}|{_PRAISE})\b)",
    r"(?i:\byou are (?:now )?(?:a|an|the) (?:judge|grader|evaluator)\b)",
    rf"(?i:\b(?:reasoning|trace|chain|sentences?|statements?|claims?)\s+(?:above |below |here )?(?:is|are)\s+(?:\w+ )?(?:{_WORD})\b)",
    r"(?i:\b(?:final|correct|right) (?:label|verdict)\b)",
    r"(?i:<\|?/?(?:im_start|im_end|system|assistant|user|eot_id|start_of_turn|end_of_turn)\b)",
    r"(?i:\[\|?/?(?:inst|gmask|sop|system|assistant|user|endofturn)\b)|<<SYS>>",
    r"(?im:^\W{0,4}(?:system|assistant|user|human)\s*:)",
)
_IMITATION = re.compile("|".join(_PATTERNS))


def imitates_verdict(text: str) -> bool:
    """Whether `text` names a label, commands a judge, or writes a role marker.

    Read as the judge sees it, with look-alikes of Latin letters as these. The time is linear.
    """
    return _IMITATION.search(latin_lookalikes(as_seen(text))) is not None
