"""Answers in other languages as the English ones that the patterns know: "la respuesta es", "故选", "सही उत्तर … है".

Only the frame around an option's letter or text is put into English: label, copula, negation and contrast, and one-word answers
to yes-no questions. Free sentences of other languages stay as they are and are left to a judge.
"""

from __future__ import annotations

import re

_LETTER = r"(?=[*\"'“(（【\[]*[A-Za-z](?![^\W\d_]|['’]))"  # of an option, perhaps in brackets
_CAPITAL = r"(?=[*\"'“(（【\[]*[A-Z](?![A-Za-z]))"
_HAN_OPTION = r"(?:选项|選項|选择|選擇)?\s*+(?:应该|应当|就|应)?\s*+(?:是|为|為|选|選|：|:)?\s*+(?:选项|選項)?\s*+"
_ADJECTIVES = (
    r"(?:correcta?s?|correctes?|correta|corretta|richtige|juiste|bonne|exacta|exacte|certa|giusta|final(?:e|es)?|mejor|meilleure|"
    r"beste|правильный|верный|doğru)"
)
_NOUNS = (
    r"(?:respuesta|opción|alternativa|réponse|antwort|lösung|resposta|opção|risposta|opzione|antwoord|ответ|вариант|cevap|"
    r"odpowiedź|svar)"
)
_DETERMINERS = r"(?:la|el|le|die|der|das|a|o|het|de|mi|ma|meine|minha|mia)"
_COPULAS = r"(?:est|es|é|è|ist|is|lautet|sería|serait|wäre|это|—)"
_LABEL = rf"(?:{_DETERMINERS} )?(?:{_ADJECTIVES} )?{_NOUNS}(?: {_ADJECTIVES})?"
_ARTICLE = rf"(?:{_DETERMINERS} )?(?:(?:opción|option|opção|opzione|lettre|letra|lettera) )?"

_FORMS = (
    # Chinese and Japanese, which put no blanks between words
    (
        r"(?<![^\W\d_])(?:所以|因此|故|最终)?(?:正确|最终|最佳)?的?答案(?:应该|应当|就)?(?:是|为|為|选择|選擇|選|选|：|:)\s*+(?:选项|選項)?\s*+"
        r"(?=\S)",
        "the answer is ",
    ),
    (rf"(?<![^\W\d_])(?:所以|因此|故|最终)?(?:正确|最佳)的?(?:选项|選項){_HAN_OPTION}{_CAPITAL}", "the answer is "),
    (
        rf"(?<![^\W\d_])(?:所以|因此|故此?|那么|我|我们|应该|应当)*(?:选择|選擇|选|選){_HAN_OPTION}{_CAPITAL}",
        "the answer is ",
    ),
    (rf"(?<=[，,。\s])(?:所以|因此|故|应)*(?:选择|選擇|选|選){_HAN_OPTION}{_CAPITAL}", "the answer is "),
    (r"(?<=[A-Z])\s*+(?:选项|選項)(?=\s*+[。.！!]?\s*+$)", ""),
    (rf"(?:正解|答え|正しい答え|解答)\s*+(?:は|：|:)\s*+{_CAPITAL}", "the answer is "),
    (r"(?<=[A-Z)）])\s*+(?:です|だ|である)(?=\s*+[。.！!]?\s*+$)", ""),
    (rf"(?:정답|답)(?:은|:|：)\s*+{_CAPITAL}", "the answer is "),
    (r"(?<=[A-Z)）])\s*+(?:입니다|이다|이에요|예요)(?=\s*+[。.！!]?\s*+$)", ""),
    # Hindi and Arabic
    (rf"(?:सही\s+)?(?:उत्तर|विकल्प|जवाब)\s*+(?::|है|—|-)?\s*+{_CAPITAL}", "the answer is "),
    (r"(?<=[A-Z)])\s*+(?:सही\s+)?(?:है|हैं)(?=\s*+[।.!]?\s*+$)", ""),
    (rf"(?:الإجابة|الجواب)(?:\s+الصحيحة|\s+الصحيح)?\s*+(?:هي|هو|:)\s*+{_CAPITAL}", "the answer is "),
    # European languages
    (rf"(?i:(?<!\S){_LABEL}(?:\s*+:| {_COPULAS}(?::| (?={_ARTICLE})))\s*+{_ARTICLE}){_LETTER}", "the answer is "),
    (rf"(?i:(?<!\S){_LABEL}(?:\s*+:| {_COPULAS}(?= )))\s*+(?=\S)", "the answer is "),
    (
        rf"(?i:(?<!\S)(?:{_DETERMINERS} )?{_NOUNS}) {_CAPITAL}(?=[*\"'(]*[A-Z][*\"')]*\s*+(?:[.,:!]|$))",
        "the answer is ",
    ),
    (r"(?i:(?<!\S)option) (?=[A-Z] ist (?:richtig|korrekt))", ""),
    (
        r"(?<=[A-Z]) (?:es (?:la )?correcta|ist (?:richtig|korrekt)|est (?:la bonne|correcte?)|é a correta)(?=\s*+[.!]?$)",
        "",
    ),
    # "not A but B"
    (r"(?<![^\W\d_])(?:不是|并非|非)\s*+(?=[^\W_]+\s*+[，,、]|[A-Z](?![A-Za-z]))", "not "),
    (r"\s*+[，,、]\s*+(?:而是|是)\s*+(?=\S)|(?<=[A-Z])(?:而是|而|是)\s*+(?=[A-Z])", " , but "),
    (rf"(?i:(?<!\S)(?:no es|nicht|ce n['’]est pas|pas|não é|não|non è|не))\s+(?i:{_ARTICLE})(?=\S)", "not "),
    (r"(?i:(?<!\S)(?:sino|sondern))\s+(?=\S)", "but "),
    (rf"(?i:(?<!\S)(?:mais|mas|bensì|а))\s+(?i:{_ARTICLE}){_CAPITAL}", "but "),
    (r"(?:排除|除去)(?:了|选项)?\s*+(?=[A-Z](?:\s*+[、,和]\s*+[A-Z])*\s*+[，,。])", "excluding "),
)
_ASCII_FRAME = re.compile(rf"(?i)(?<!\w)(?:{_NOUNS}|no es|nicht|sino|sondern|pas|correcta|richtig|korrekt)(?!\w)")
_BLANKS = re.compile(r"[^\S\n]{2,}")
_COMPILED = tuple((re.compile(pattern), english) for pattern, english in _FORMS)

YES_NO = {
    "affirmative": "yes",
    **dict.fromkeys(
        [
            "是",
            "是的",
            "对",
            "對",
            "对的",
            "sí",
            "si",
            "sim",
            "ja",
            "oui",
            "да",
            "はい",
            "네",
            "예",
            "हाँ",
            "हां",
            "نعم",
            "evet",
            "tak",
        ],
        "yes",
    ),
    **dict.fromkeys(
        [
            "否",
            "不是",
            "不对",
            "nein",
            "non",
            "não",
            "нет",
            "いいえ",
            "아니요",
            "아니오",
            "नहीं",
            "لا",
            "hayır",
            "nie",
            "nee",
        ],
        "no",
    ),
}
"""Words that alone are an answer to a yes-no question, but for the most common English ones."""

PLACE = re.compile(r"^(?:(?:a )?la|al|el|à la|à|au|en el|en la|en|auf der|in der|ao|в|на) (\S.*)$|^在(\S.*)$")
"""A place with the preposition that options often lack: "a la izquierda", "à gauche", "在左边"."""


def in_english(text: str) -> str:
    """`text` with the frames of answers in English."""
    if not _has_frame(text):
        return text
    text = _BLANKS.sub(" ", text)
    for pattern, english in _COMPILED:
        text = pattern.sub(english, text)
    return text


def _has_frame(text: str) -> bool:
    """Whether one of the languages may be there; English answers are the most."""
    return not text.isascii() or _ASCII_FRAME.search(text) is not None
