"""Replies without tags: where the trace is, and that accuracy is read from all of the reply."""

from __future__ import annotations

import time

import pytest
from answer_phrasings import FRESH, PHRASINGS, REVIEWED

from eval import models, run_folder
from eval.extract import extract_choice
from eval.open_answers import same_open_answer
from eval.reply_parts import parts
from fgrpo.response import answer_span, parse, with_trace

TAGS = models.load("vl-rethinker").tags
COLOURS = ("red", "blue", "green", "yellow")
CAR = "The car is blue."
BOTH = "The car is blue. It stands left of the tree."
LINES = "The car is blue.\nIt stands left of the tree."

ANSWER_FIRST = [  # (reply, trace), all of choice B
    (f"B) blue\n\nExplanation: {BOTH}", f"Explanation: {BOTH}"),
    (f"**B**\n\nReasoning: {BOTH}", f"Reasoning: {BOTH}"),
    ("Option B.\n\nThe car stands next to a green tree.", "The car stands next to a green tree."),
    ("(B)\n\nThe tree next to the car is green.", "The tree next to the car is green."),
    (
        "B\n\n1. The car stands left of the tree.\n2. The tree is green.",
        "1. The car stands left of the tree.\n2. The tree is green.",
    ),
    (f"**Answer:** B\n\n**Explanation:** {BOTH}", f"**Explanation:** {BOTH}"),
    (f"(B) is the right answer.\n\n{BOTH}", BOTH),
    (f"The answer is B.\nConfidence: 90%\n\n{BOTH}", BOTH),
    (f"The answer is B</answer>\n\n{BOTH}", BOTH),
    (f"### Answer\nB\n\n### Explanation\n{BOTH}", f"### Explanation\n{BOTH}"),
    (f"\\boxed{{B}}\n\n{BOTH}", BOTH),
    (f"The answer is B. {BOTH}", BOTH),
    (f"Answer: B\r\n\r\n{BOTH}\r\n", BOTH),
    (f"Sure! Here is my answer:\n\nB) blue\n\nExplanation: {BOTH}", f"Explanation: {BOTH}"),
    (f"**B**\n\nReasoning: {CAR} So the answer is B.", f"Reasoning: {CAR}"),
    (f"B\n\n{BOTH}\n\nTherefore, the answer is B.", BOTH),
    (f"B\n\n{BOTH}\n\nI hope this helps!", BOTH),
    (f"答案：B\n\n{BOTH}", BOTH),
    ("答案：B\n\n汽车是蓝色的，在树的左边。", "汽车是蓝色的，在树的左边。"),
    ("Antwort: B\n\nDas Auto ist blau und steht links vom Baum.", "Das Auto ist blau und steht links vom Baum."),
    ("B. blue\n\nA is wrong, since the car is not red.", "A is wrong, since the car is not red."),
    ("B\n\nHope this helps!", ""),
    ("B\n\n(The other options are wrong.)", ""),
    ("```\nB\n```", ""),
    ("<answer>B</answer>\n" + BOTH, BOTH),
]
ANSWER_FIRST += [
    ("Blue.\n\nThe car stands next to a green tree.", "The car stands next to a green tree."),
    ("**Blue**\n\n1. It is a car.\n2. The tree is green.", "1. It is a car.\n2. The tree is green."),
]
CLOSED = [
    (f"{CAR}\n\nB. blue\n\nHope this helps!", CAR),
    (f"{CAR}\n\n**B. blue**\n\n(The other options are wrong.)", CAR),
    (f"{CAR}\n\nB\n\n---", CAR),
    (f"{CAR}\n\n```\nB\n```", CAR),
    (f"{CAR}\n\nB\n```", CAR),
    (f"{CAR}\nMy choice is B.\nThis answer is final.", CAR),
    (f"{CAR}\nB\nThe answer is based on the picture.", CAR),
    (f"{CAR}\nI choose B.\nLet me know if you have other questions.", CAR),
    (f"{CAR}\n\n**Answer:** (B)\n\nConfidence: 95%", CAR),
    (f"{CAR}\n\nAnswer: B\n\nPlease let me know if you need more details!", CAR),
]
EARLY = [
    (f"Let me find the answer.\n{LINES}\nB", f"Let me find the answer.\n{LINES}"),
    (f"I need to find the correct answer.\n\n{LINES}\n\nB", f"I need to find the correct answer.\n\n{LINES}"),
    (f"Looking at the image, here is my answer:\n{LINES}\n\nB", f"Looking at the image, here is my answer:\n{LINES}"),
    (f"The answer is clear from the picture. {CAR}\nB", f"The answer is clear from the picture. {CAR}"),
    (f"At first the answer is not obvious.\n{CAR}\nB", f"At first the answer is not obvious.\n{CAR}"),
    ("I'll answer: the car is blue.\nThe tree is green.\nB", "I'll answer: the car is blue.\nThe tree is green."),
    (f"Let me check. What is the answer?\n{CAR}\nB", f"Let me check. What is the answer?\n{CAR}"),
    (
        f"The answer options are red, blue, green and yellow.\n{CAR}\nB",
        f"The answer options are red, blue, green and yellow.\n{CAR}",
    ),
    (f"To answer this, I look at the car.\n{CAR}\n(B)", f"To answer this, I look at the car.\n{CAR}"),
    (f"The tree is not the answer.\n{CAR}\nB", f"The tree is not the answer.\n{CAR}"),
]
ONE_LINE = [
    (f"{CAR} Thus B is correct.", CAR),
    (f"{CAR} Hence: B", CAR),
    ("汽车是蓝色的。答案是B。", "汽车是蓝色的。"),
    ("Das Auto ist blau. Die Antwort ist B.", "Das Auto ist blau."),
    ("La voiture est bleue. La réponse est B.", "La voiture est bleue."),
    ("El coche es azul. La respuesta es B.", "El coche es azul."),
    ("O carro é azul. A resposta é B.", "O carro é azul."),
    ("Машина синяя. Ответ: B", "Машина синяя."),
    ("車は青いです。答えはBです。", "車は青いです。"),
    ("चित्र में कार नीली है। सही उत्तर B है।", "चित्र में कार नीली है।"),
    (f"{BOTH} B", BOTH),
    (f"{BOTH} (B)", BOTH),
    (f"{BOTH} So it is B.", BOTH),
    (f"{BOTH} I choose B. blue", BOTH),
    (f"{BOTH} **Answer: B**", BOTH),
    (f"{BOTH} The correct option is **B. blue**.", BOTH),
    ("B", ""),
    ("The answer is B.", ""),
]
LAST = [
    (f"{LINES}\nnavy", LINES),
    ("A. red: no\nB. blue: yes\n\nThe answer is \\boxed{B}", "A. red: no\nB. blue: yes"),
    (f"A) red\nB) blue\n\n{CAR}\n\nAnswer: B", f"A) red\nB) blue\n\n{CAR}"),
    ("A) red\nB) blue\n\nThe answer is B.", "A) red\nB) blue"),
    ("1. A is wrong.\n2. B is right.\nSo the answer is B.", "1. A is wrong.\n2. B is right."),
    (f"$x \\in \\{{1, 2\\}}$.\n{CAR}\n$\\boxed{{B}}$", f"$x \\in \\{{1, 2\\}}$.\n{CAR}"),
    ("Red.\nNo, blue.\n\\boxed{B}", "Red.\nNo, blue."),
    (f"It stands left of the tree.\n{CAR}", "It stands left of the tree."),
    (LINES, "It stands left of the tree."),
    (f"{BOTH}\nAnswer: B", BOTH),
    (f"{BOTH}\n\n**Answer:** (B)", BOTH),
    (f"{BOTH}\n\n### Answer\nB", BOTH),
    (f"{BOTH}\n\n## Final answer\n\n**B. blue**", BOTH),
    (f"{BOTH}\nFinal answer → B", BOTH),
    (f"{BOTH}\n答案：B", BOTH),
    (f"{BOTH}\r\n\r\nAnswer: B\r\n", BOTH),
    (f"{BOTH} The final answer is: $\\boxed{{B}}$", BOTH),
    (f"{BOTH}\n\nThe final answer is: $\\boxed{{B}}$", BOTH),
    (f"{BOTH}\n\nThe final answer is:\n$\\boxed{{B}}$", BOTH),
    (f"{BOTH}\n\nAnswer: \\boxed{{B}}", BOTH),
    (f"{BOTH}\n\nAnswer:\n\\boxed{{B}}", BOTH),
    (f"{BOTH}\n\n\\[\n\\boxed{{B}}\n\\]", BOTH),
    (f"{BOTH}\n\n$$\n\\boxed{{\\text{{B}}}}\n$$", BOTH),
    (f"{BOTH}\n\n\\[\n\\boxed{{\nB\n}}\n\\]", BOTH),
    (f"{BOTH}\n\n\\boxed{{\\text{{B. blue}}}}", BOTH),
    (f"The answer is A?\n{CAR}\nThe answer is B.", f"The answer is A?\n{CAR}"),
    (f"{BOTH} The answer is B.\nThe answer is B.", BOTH),
    (f"Step 1: {CAR}\nStep 2: It is no tree.\n\nSo the answer is B.", f"Step 1: {CAR}\nStep 2: It is no tree."),
    (f"1. {CAR}\n2. The tree is green.\n\nB. blue", f"1. {CAR}\n2. The tree is green."),
    (f"The tree is green. {CAR}\nB", f"The tree is green. {CAR}"),
    (f"{BOTH}\n<answer>B</answer>", BOTH),
    (f"{BOTH}\n\n**Answer:**\n<answer>B</answer>", BOTH),
    (f"<think></think>\n\n{BOTH}\nB", BOTH),
    (f"<think>{BOTH}</think>\nB", BOTH),
]
KEYED = [
    ('{"reasoning": "The car is blue. It stands left of the tree.", "answer": "B"}', BOTH),
    ('{"reasoning":"The car is blue.","final_answer":"B"}', CAR),
    ('```json\n{"reasoning": "The car is blue.",\n "answer": "B"}\n```', CAR),
    ('{"answer": "B", "explanation": "The car is blue."}', CAR),
    (
        '{"analysis": "The tree is green. The answer is not C.", "choice": "B. blue"}',
        "The tree is green. The answer is not C.",
    ),
    ('{"Thought": "The car is blue.", "Final Answer": "(B)"}', CAR),
    ('{"steps": ["The car is blue.", "It stands left of the tree."], "option": "B"}', LINES),
    ('{"response": {"rationale": "The car is blue.", "answer": "B"}}', CAR),
    ('[{"observation": "The car is blue.", "answer": "B"}]', CAR),
    ('{"reasoning": "The car\nis blue, \\(x\\).", "answer": "\\boxed{B}"}', "The car\nis blue, \\(x\\)."),
    (f'Here is my answer:\n```json\n{{"reasoning": "{CAR}", "answer": "B"}}\n```\nHope this helps!', CAR),
    (f'{BOTH}\n\n```json\n{{"answer": "B"}}\n```', BOTH),
    ('{"answer": "B"}', ""),
]
KEYED_LOOSELY = [
    ('{"answer": "B"}\n\n' + BOTH, BOTH),
    ("{'answer': 'B'}\n\n" + BOTH + "\n\nHope this helps!", BOTH),
    ("{'reasoning': 'The car is blue.', 'answer': 'B'}", CAR),
    ('{"reasoning": "The car is blue.", "answer": "B"', CAR),
    ('{\n "reasoning": "The car is blue.",\n "answer": "B",\n}', CAR),
    ('{"reasoning": "The car is "blue".", "answer": "B"}', 'The car is "blue".'),
    ('{"reasoning": "The car is blue."}\n{"answer": "B"}', CAR),
    ('The car is blue. {"answer": "B"}', CAR),
]
ONE_SENTENCE = [
    ("The car is blue, so the answer is B.", "The car is blue"),
    ("The car is blue, so B.", "The car is blue"),
    ("The car is blue -> B", "The car is blue"),
    ("汽车是蓝色的，所以答案是B。", "汽车是蓝色的"),
    ("B because the car is blue.", "because the car is blue."),
    ("B, since the car is blue. The tree is green.", "since the car is blue. The tree is green."),
    (f"B. {BOTH}", BOTH),
    (f"**B.** {BOTH}", BOTH),
]
ODD_ENDS = [
    (f"{CAR}\n\nB<|im_end|>", CAR),
    (f"{CAR}\n\nB</s><|endoftext|>\n", CAR),
    (f"{CAR}\n\nB\n\nThank you!", CAR),
    (f"{CAR}\n\nB ✅", CAR),
    (f"{CAR}\n\n> **B**", CAR),
    (f"<explanation>{CAR}</explanation>\n<answer>B</answer>", CAR),
    (f"<answer>B</answer>\n<explanation>{CAR}</explanation>", CAR),
]
TABLE = [*KEYED_LOOSELY, *ONE_SENTENCE, *ODD_ENDS, *ANSWER_FIRST, *CLOSED, *EARLY, *ONE_LINE, *LAST, *KEYED]


@pytest.mark.parametrize(("text", "trace"), TABLE)
def test_the_trace_and_the_choice(text: str, trace: str) -> None:
    response = parse(text, tags=TAGS, choices=COLOURS)
    assert (response.think, response.has_trace) == (trace, bool(trace))
    assert extract_choice(text, COLOURS, TAGS) == 1


def test_phrasings_of_answers_after_reasoning() -> None:
    """The trace begins with the reasoning; what the whole reply decides wrongly, plain tags decide so too, but for two conflicts."""
    before = "The picture shows a road with a house.\nIt was taken by day."
    wrong, lost, cut = [], [], []
    for choices, rows in (*PHRASINGS, *FRESH, *REVIEWED):
        for phrase, right in rows:
            text = f"{before}\n{phrase}"
            alone, choice = extract_choice(phrase, choices), extract_choice(text, choices, TAGS)
            if choice not in (None, right, extract_choice(text, choices)):
                wrong.append(phrase)
            if alone is not None and choice is None:
                lost.append(phrase)
            if alone is not None and not parse(text, tags=TAGS, choices=choices).think.startswith(before):
                cut.append(phrase)
    assert wrong == ["The cup is on the left.\nB", "It is inside. C."]
    assert lost == ["<B>"]
    assert all("<" in phrase for phrase in cut), cut  # tags, which end the trace


YES_NO = [
    ("The car has no driver.\n\nNo", "The car has no driver.", 1),
    ("Yes. The car is blue, and the tree is green.", "The car is blue, and the tree is green.", 0),
    ("The light is on, so somebody is at home.\nThe answer is yes.", "The light is on, so somebody is at home.", 0),
    ("**No**\n\nThe street is empty.", "The street is empty.", 1),
    ("The street is empty.\nAnswer: B", "The street is empty.", 1),
    ("Yes, because the lamp in the room is on.", "because the lamp in the room is on.", 0),
    ("The lamp is off. Therefore no.", "The lamp is off.", 1),
    ("There is a kennel.\nYes, there is a dog.", "There is a kennel.", 0),
    ("There is a kennel.\nNo, there isn't.\n\nHope this helps!", "There is a kennel.", 1),
    ("灯是灭的。\n否", "灯是灭的。", 1),
]


@pytest.mark.parametrize(("text", "trace", "choice"), YES_NO)
def test_yes_or_no(text: str, trace: str, choice: int) -> None:
    assert parse(text, tags=TAGS, choices=("Yes", "No")).think == trace
    assert extract_choice(text, ("Yes", "No"), TAGS) == choice


OTHERS = [  # options, reply, trace, choice
    (("2", "3", "4"), "There are 2 red cars and 1 blue one.\n\n3", "There are 2 red cars and 1 blue one.", 1),
    (("2", "3", "4"), "2 + 1 = 3.\nSo there are 3 cars.\nB", "2 + 1 = 3.\nSo there are 3 cars.", 1),
    (("2", "3", "4"), "I count two and one. The answer is 3.", "I count two and one.", 1),
    (
        ("left", "right"),
        "The cup stands left of the plate.\nThe answer is left.",
        "The cup stands left of the plate.",
        0,
    ),
    (("left", "right"), "The lamp is right of the cup.\n\nleft", "The lamp is right of the cup.", 0),
    (("left", "right"), "A\n\nThe cup is right of the lamp.", "The cup is right of the lamp.", 0),
    (("2", "3", "4"), "1. a red car\n2. a blue car\n\nTotal: 3", "1. a red car\n2. a blue car", 1),
    (("2", "3", "4"), "B\n\n- 2 red cars\n- 1 blue car", "- 2 red cars\n- 1 blue car", 1),
    (("left", "right"), "**Left**\n\nThe cup stands beside the plate.", "The cup stands beside the plate.", 0),
    (("left", "right"), "A photo shows a cup.\nThe cup is on the left.", "A photo shows a cup.", 0),
    (("a cat", "a dog"), "The animal barks loudly.\nIt is a dog.\nThanks!", "The animal barks loudly.", 1),
]


@pytest.mark.parametrize(("choices", "text", "trace", "choice"), OTHERS)
def test_other_options(choices: tuple[str, ...], text: str, trace: str, choice: int) -> None:
    assert parse(text, tags=TAGS, choices=choices).think == trace
    assert extract_choice(text, choices, TAGS) == choice


OPEN = [  # reply, trace, answer
    ("Two cars are red and one is blue.\nAnswer: 3", "Two cars are red and one is blue.", "3"),
    ("Two cars are red and one is blue.\n3", "Two cars are red and one is blue.", "3"),
    ("Two cars are red and one is blue. The answer is 3.", "Two cars are red and one is blue.", "3"),
    ("Two cars are red and one is blue.\n\n### Final answer\n3", "Two cars are red and one is blue.", "3"),
    ("Two cars are red and one is blue.\n\n\\[\n\\boxed{3}\n\\]", "Two cars are red and one is blue.", "3"),
    (
        "The answer is clear from the picture.\nA red car is there.\n3",
        "The answer is clear from the picture.\nA red car is there.",
        "3",
    ),
    ("3\n\nTwo cars are red and one is blue.", "Two cars are red and one is blue.", "3"),
    ("Answer: 3\n\nTwo cars are red and one is blue.", "Two cars are red and one is blue.", "3"),
    ("A red sign with white letters.\n\nStop sign\n\nHope this helps!", "A red sign with white letters.", "stop sign"),
    ("A red sign with white letters.\nThe answer is a stop sign.", "A red sign with white letters.", "stop sign"),
    (
        "The sign is red and has eight sides.\nSo it is a stop sign.",
        "The sign is red and has eight sides.",
        "stop sign",
    ),
    ('{"reasoning": "A red sign.", "answer": "stop sign"}', "A red sign.", "stop sign"),
    ("汽车有两辆红的和一辆蓝的。答案是3。", "汽车有两辆红的和一辆蓝的。", "3"),
    ("Dogs: 2\nCats: 1\n\nTotal: 3", "Dogs: 2\nCats: 1", "3"),
    ("Dogs: 2\nCats: 1\n\n**3**", "Dogs: 2\nCats: 1", "3"),
    ("3.\nTwo dogs and a cat are there.", "Two dogs and a cat are there.", "3"),
    ("标志是红色的。\n答案：停", "标志是红色的。", "停"),
    ("Count the cars.\n\n## Answer\n3", "Count the cars.", "3"),
    ("Yes.\nThe dog is in the picture.", "The dog is in the picture.", "yes"),
    ("3", "", "3"),
    ("It is a stop sign.", "", "stop sign"),
]


@pytest.mark.parametrize(("text", "trace", "gold"), OPEN)
def test_open_answers(text: str, trace: str, gold: str) -> None:
    response = parse(text, tags=TAGS)
    span = answer_span(text, TAGS)
    assert (response.think, response.has_trace) == (trace, bool(trace))
    assert span is not None and same_open_answer(span, gold, with_reasoning=True) is True
    assert response.answer is not None and same_open_answer(response.answer, gold) is True


@pytest.mark.parametrize(
    "text", ["red\nwhite", "3\n4", "It is not 3.\nThere are 4.", "3\n\nNo, 4.", "Maybe 3.\n4", "Total: 3\nTotal: 4"]
)
def test_another_answer_at_the_end_is_not_the_open_answer(text: str) -> None:
    assert same_open_answer(text, "red" if "red" in text else "3", with_reasoning=True) is not True


UNDECIDED = [
    ("The car may be red.\nIt could be A or B.", "The car may be red."),
    ("The car is dark.\nI cannot tell.\nHope this helps!", "The car is dark."),
    ("The car is dark.\nThe answer is E.", "The car is dark."),
    ("Nothing is there to be seen.", ""),
    ("OK, so E.", ""),
]


@pytest.mark.parametrize(("text", "trace"), UNDECIDED)
def test_without_a_decided_answer_the_last_line_is_the_answer(text: str, trace: str) -> None:
    assert parse(text, tags=TAGS, choices=COLOURS).think == trace
    assert extract_choice(text, COLOURS, TAGS) is None


@pytest.mark.parametrize(
    "text",
    [
        "The answer is B.\nWait, B is wrong.\nThe car stands there.",
        "B\n\nOr it might be option C.",
        "The answer is A.\nThe answer is B.",
        "The tree is green.\nThe answer is not B.\nC or B",
        "C. blue",
        "Looking at option B.\nThe car is green.",
        "B\nSorry, the car is green.",
        "Blue.\nNo: the car is green.",
        "B; the car is green.",
        '{"answer": "A", "alternative": "B"}',
        "The answer is A.\n\n\\boxed{B}",
        "It is not A but \\boxed{B}",
        "\\boxed{B}\n\nWait, it is C.",
    ],
)
def test_what_the_whole_reply_takes_back_is_not_read(text: str) -> None:
    assert extract_choice(text, COLOURS, TAGS) is None


PIECES = (
    *(
        "answer ",
        "\\boxed{",
        "\n",
        "Answer:\n",
        ". ",
        "B\n",
        "{",
        '\n{"a":',
        '{"answer": "',
        "the ",
        "``` ",
        "\\[\n",
        "The answer is B. ",
    ),
    *(
        " ",
        "a ",
        "a",
        "let me a ",
        ": ",
        "'",
        '"a": ',
        "`",
        "*",
        "sure ",
        ", so ",
        "-> ",
        "B. ",
        "</s>",
        "<b>",
        "所以",
        "，",
        "1. ",
        "I hope ",
    ),
)


@pytest.mark.parametrize("piece", PIECES)
def test_the_time_is_linear(piece: str) -> None:
    """A quadratic rule would take minutes here."""
    begun = time.process_time()
    for text in (piece * (100_000 // len(piece)), f'{{"answer": {piece * 30}\nA {piece * 20}x.\n{piece * 20_000}y'):
        parse(text, tags=TAGS, choices=COLOURS)
        parse(text, tags=TAGS)
    assert time.process_time() - begun < 30


def test_different_lines_without_end_take_no_time() -> None:
    text = "".join(f"The car {n} is blue, so B{n}.\n" for n in range(4000))
    begun = time.process_time()
    assert parse(f"{text}B", tags=TAGS, choices=COLOURS).think == text.strip()
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    "content",
    [
        "<think>\n\n</think>\n\nAnswer: B",
        "<THINK></THINK>Answer: B",
        "<thinking> </thinking>Answer: B",
        "</think>\nAnswer: B",
    ],
)
def test_an_empty_think_block_yields_to_the_reasoning_of_its_own_field(content: str) -> None:
    text = with_trace(content, CAR)
    assert (parse(text, tags=TAGS).think, answer_span(text)) == (CAR, "Answer: B")


def test_a_block_with_reasoning_stays() -> None:
    assert with_trace("<think>It is red.</think>B", CAR) == f"<think>{CAR}</think><think>It is red.</think>B"
    assert with_trace("<think></think>B", "") == "<think></think>B"


def test_the_rules_that_read_answers_belong_to_the_scores() -> None:
    """An edited rule scores stored answers again; that of traces without tags only those of the models that it reads."""
    rules = {"extract", "open_answers", "response", "box_forms"}
    assert set(run_folder.reading(models.load("fgrpo"))["code"]) == rules
    code = run_folder.reading(models.load("gpt-4o"))["code"]
    assert set(code) == {*rules, "untagged", "keyed_reply"} and all(code.values())


def test_a_label_is_no_sentence() -> None:
    found = parts("B. blue\n1. The car is blue. It is B. Thus\ne.g. a car. \\boxed{\nB\n} So.")
    lines = ["B. blue", "1. The car is blue.", "It is B.", "Thus", "e.g. a car.", "\\boxed{\nB\n} So."]
    assert [part.text for part in found] == lines
