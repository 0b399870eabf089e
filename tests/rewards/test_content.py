"""Traces without content, in many languages and disguises, and short traces that do say something."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fgrpo.errors import UserError
from fgrpo.response import parse
from fgrpo.types import Sample, Verdict
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem, load
from rewards.content import filler, is_blank, is_contentless, visible

CONTENTLESS = [
    *("かいせつ", "思考过程：", "समाधान:", "Let us solve this step by step.", "Here is my reasoning.", "ok ok ok"),
    *(
        "left left left",
        "left, right, left, right",
        "Okay, so, first, let me look at the image carefully.",
        "解",
        "解説します。",
    ),
    *(
        "Let's think about this step-by-step, carefully and systematically.",
        "Here is my reasoning: left",
        "Sure! Here is the solution.",
    ),
    *(
        "The reasoning is consistent with the answer.",
        "I will now explain my answer.",
        "Yes yes yes yes",
        "hmm hmm hmm hmm",
    ),
    *(
        "Step 1: Step 2: Step 3: Step 4:",
        "a b c d e f",
        "1. 2. 3.",
        "**Final answer:**",
        "### Solution\n\n---\n",
        "Vamos a resolver este problema paso a paso.",
    ),
    *(
        "Respuesta",
        "Razonamiento: pensemos paso a paso",
        "Résolvons ce problème étape par étape.",
        "Voici mon raisonnement :",
    ),
    *(
        "Lass uns dieses Problem Schritt für Schritt lösen.",
        "Hier ist meine Überlegung:",
        "Vamos resolver este problema passo a passo.",
    ),
    *(
        "Risolviamo questo problema passo dopo passo.",
        "Laten we dit probleem stap voor stap oplossen.",
        "Давайте решим эту задачу шаг за шагом.",
    ),
    *(
        "Ход мыслей:",
        "Rozwiążmy to zadanie krok po kroku.",
        "Bu problemi adım adım çözelim.",
        "Mari kita selesaikan masalah ini langkah demi langkah.",
    ),
    *(
        "Hãy giải quyết vấn đề này từng bước một.",
        "Quá trình suy nghĩ:",
        "आइए इस समस्या को चरण दर चरण हल करें।",
        "विचार प्रक्रिया:",
    ),
    *(
        "دعونا نحل هذه المشكلة خطوة بخطوة.",
        "عملية التفكير:",
        "פתרון: בואו נפתור את הבעיה שלב אחר שלב",
        "Ας λύσουμε το πρόβλημα βήμα προς βήμα.",
    ),
    *(
        "让我们一步一步地解决这个问题。",
        "好的，我们来分析一下这个问题。",
        "讓我們逐步思考這個問題",
        "この問題を順番に解いていきましょう。",
        "ステップバイステップで考えてみましょう。",
    ),
    *(
        "풀이 과정:",
        "이 문제를 단계별로 풀어 보겠습니다.",
        "มาแก้ปัญหานี้ทีละขั้นตอนกัน",
        "กระบวนการคิด:",
        "哈哈哈哈哈哈哈",
        "ㅋㅋㅋㅋㅋㅋ",
    ),
    *(
        "Lеt us sоlve this stеp by stеp.",
        "Ｌｅｔ　ｕｓ　ｓｏｌｖｅ　ｔｈｉｓ",
        "L\u200be\u200bt us sol\u00adve this step by step",
        "le\u0301ft le\u0301ft",
        "ok\u2060ok ok ok",
    ),
    *(
        "<b>Let us</b> <i>think</i> <u>step by step</u>",
        "The answer is in the image.",
        "Thinking... thinking... thinking... done thinking",
        "👍 ok 👍 sure 👍",
    ),
    *(
        "Let me see. Hmm. Okay. So. Therefore. Thus.",
        "Explanation: see the explanation.",
        "I have verified the answer and it is correct.",
    ),
    *(
        "First, I should understand what is asked.",
        "We need to find the answer to the question.",
        "\u3164\u3164\u3164",
        "\u2800 \u2800 \u2800",
    ),
    *(
        "As an AI language model, I think step by step.",
        "<think></think>",
        "সমাধান: চলুন এই সমস্যাটি ধাপে ধাপে",
        "left\nleft\nleft\nleft",
        "LEFT left Left lEfT",
    ),
]

CONTENTLESS += [
    "To answer this question, I need to think.",
    "I'll break this down step by step.",
    "Let me break down the problem.",
    "We are asked to find the correct option.",
    "Alright, let's dive in.",
    "Thinking process: analyzing the visual information provided.",
    "After careful consideration, I have reached a conclusion.",
    "I carefully examined the picture and found the answer.",
    "My thought process is as follows:",
    "Reasoning: The answer follows from the reasoning.",
    "Okay.\\nOkay.\\nOkay.",
    "This is a simple question, so I can answer it directly.",
    "The user asks a question about the image. I should respond.",
    "Now I know the answer.",
    "So I will go through it slowly.",
    "That should be enough.",
    "Let me think about this problem carefully before giving the final answer.",
    "No reasoning needed.",
    "Explanation follows.",
    "Based on the image provided, I can determine the correct answer.",
    "<reasoning>...</reasoning>",
    "Proceso de pensamiento:",
    "Primero, analicemos la imagen cuidadosamente.",
    "Processus de réflexion :",
    "Réfléchissons étape par étape.",
    "Lösungsweg:",
    "Denken wir Schritt für Schritt nach.",
    "Zuerst schaue ich mir das Bild an.",
    "Analyse de l'image",
    "Procedimento:",
    "Ragioniamo passo per passo",
    "Рассуждение:",
    "Решение: рассмотрим задачу",
    "Düşünce süreci:",
    "思考步骤如下：",
    "让我仔细看看这张图片。",
    "首先，我们需要理解题目的意思。",
    "解题过程如下所示",
    "まず、画像を見てみましょう。",
    "以下に考え方を説明します。",
    "思考の過程：",
    "생각해 보겠습니다.",
    "단계별로 생각해 봅시다.",
    "문제를 분석해 보면 다음과 같습니다.",
    "ให้ฉันคิดทีละขั้นตอน",
    "चलो कदम दर कदम सोचते हैं",
    "التفكير خطوة بخطوة",
    "answer answer answer answer",
    "blah blah blah",
    "... ... ... ok",
    "yes no yes no yes no",
    "1) 2) 3) 4)",
    "A B C D",
    "Question: Answer: Solution: Final:",
    "lol lol lol ok",
    "Thought: I now know the final answer",
    "Final Answer: the final answer is correct. I hope it is correct.",
    "I think therefore I answer.",
]

CONTENTLESS += [
    "Let me work through this carefully to arrive at the right answer.",
    "Sure, let me help you with that.",
    "Here's my step-by-step reasoning process:",
    "The following is my thinking.",
    "To find out, I must look.",
    "Let's take a closer look at the picture.",
    "I am going to answer the question now.",
    "Thinking out loud here.",
    "I need to be careful here.",
    "Hmm, this takes some thought.",
    "Now I can come to a decision.",
    "First, I should understand what is asked.",
    "I have analyzed everything and I am confident in my answer.",
    "My answer is final.",
    "I'm certain that this is the correct answer.",
    "It is obvious.",
    "The answer is obvious from the image.",
    "As requested, here is the reasoning behind my choice.",
    "Reasoning complete.",
    "Analysis done. Answer below.",
    "We can solve it by reasoning.",
    "One moment please.",
    "begin of reasoning ... end of reasoning",
    "reason reason reason",
    "I think I think I think",
    "so so so so",
    "the the the the",
    "is it is it is it",
    "?!?!?!",
    "Answer: answer",
    "Pensamiento: ...",
    "Déjame pensar en esto paso a paso.",
    "Laissez-moi réfléchir à cela étape par étape.",
    "Lass mich das Schritt für Schritt durchdenken.",
    "Deixe-me pensar passo a passo.",
    "Fammi pensare passo dopo passo.",
    "Дай подумать.",
    "Позвольте мне подумать шаг за шагом.",
    "Pozwól mi pomyśleć krok po kroku.",
    "Adım adım düşünelim.",
    "Biarkan saya berpikir langkah demi langkah.",
    "Để tôi suy nghĩ từng bước.",
    "मुझे कदम दर कदम सोचने दीजिए।",
    "دعني أفكر خطوة بخطوة.",
    "让我一步步思考。",
    "我需要仔细思考这个问题。",
    "好的，让我想一想。",
    "考えさせてください。",
    "ステップごとに考えます。",
    "차근차근 생각해 보자.",
    "คิดทีละขั้น",
    "思考：",
    "解：",
    "答：",
]

CONTENTLESS += [
    "Great question! Let me answer it.",
    "Let's get started.",
    "Let us proceed methodically.",
    "I shall now present my reasoning.",
    "This requires careful thought.",
    "Below is a detailed explanation of my reasoning.",
    "Taking everything into account, I choose the final option.",
    "I'll solve it now, step by step, with care.",
    "My chain of thought:",
    "Detailed analysis:",
    "Solving...",
    "Answering the question requires reasoning.",
    "In order to solve the problem, we need to think.",
    "The solution is as follows:",
    "Good. Now let's answer.",
    "Reasoning process: first, analyze the question; second, analyze the image; third, answer.",
    "It follows that the answer is correct.",
    "I looked at the picture and thought about it.",
    "Analysons l'image étape par étape.",
    "Analicemos el problema.",
    "Betrachten wir das Bild genau.",
    "Давайте внимательно рассмотрим изображение.",
    "画像を注意深く分析します。",
    "让我们仔细分析图片。",
    "이미지를 자세히 분석해 보겠습니다.",
    "تحليل الصورة:",
    "ok... ok... fine... sure",
    "thought thought thought thought",
]

CONTENT = [
    *("The car.  A red car.", "The cars are here", "It is a plane.", "The trees are tall.", "I see planes"),
    *("It moved left.", "There are two circles.", "红色的圆在左边", "The answer is left", "so it is left", "The answer is B"),
    *("There are 3.", "The car is on the left side.", "Solution: the bus is red", "ok, the dog sits left of the cat", "球在左边"),
    *("Let us solve this step by step: the red circle is above the square.", "Машина стоит слева.", "รถอยู่ทางซ้าย", "차는 왼쪽에 있다"),
    *("العربة على اليسار", "लाल वृत्त बाईं ओर है।", "El coche rojo está a la izquierda.", "La voiture est à gauche.", "Das Auto steht links."),
    *("O carro está à esquerda.", "L'auto è a sinistra.", "De auto staat links.", "Samochód jest po lewej.", "Araba solda duruyor.", "Mobil ada di kiri."),
    *("Chiếc xe ở bên trái.", "赤い丸は左にあります。", "答案是左边的圆", "解説：赤い車が左です", "빨간 공이 왼쪽에 있습니다", "המכונית משמאל לאוטובוס", "Το αυτοκίνητο είναι αριστερά."),
    *("Two dogs, one cat.", "The image shows a red car.", "Step 1: the car is red. Step 2: the bus is blue.", "It is a cat.", "Red, green and blue"),
    *("It is at <bbox>[1,2,3,4]</bbox>, above the lamp", "I count three chairs.", "Left of the tree stands a man.", "গাড়িটি বাম দিকে আছে"),
]  # fmt: skip

CONTENT += [
    "The cup is close to the edge.",
    "It is far away.",
    "The sky looks dark.",
    "People walk across the street.",
    "I see a dog.",
    "A man holds an umbrella.",
    "There is one cat.",
    "She wears red.",
    "It shows a stop sign.",
    "The clock reads 3.",
    "Both circles overlap.",
    "The arrow points up.",
    "B is closer.",
    "The tower leans right.",
    "left of the tree",
    "It is above it.",
    "圆在左。红色。",
    "犬が左にいる",
    "고양이가 두 마리 있다",
]


@pytest.mark.parametrize("think", CONTENTLESS)
def test_contentless(think: str) -> None:
    assert is_contentless(think)


@pytest.mark.parametrize("think", CONTENT)
def test_content(think: str) -> None:
    assert not is_contentless(think)


def test_the_questions_words_count_among_any_filler() -> None:
    think = "I can see in the image that the answer is zebra."
    assert is_contentless(think) and not is_contentless(think, "Which animal is it? horse zebra")


def test_openers_do_not_add_up_however_many_there_are() -> None:
    assert is_contentless("\n".join(CONTENTLESS[:8] * 200))
    assert not is_contentless("\n".join([*CONTENTLESS[:6], "The bus is left."]))


@pytest.mark.parametrize(
    "answer", ["\u200b", "\u200b\u200d\ufeff", "\u2060 \u00ad", "\u3164", "\u2800", "\u0301", "\U000e0041"]
)
def test_an_answer_that_shows_nothing_is_no_answer(answer: str, no_judge: JudgeSet) -> None:
    assert is_blank(answer) and not is_blank("left" + answer)
    sample = Sample("sat/t/0", (), "Left or right?", ("left", "right"), "left")
    text = f"<think>The car is on the left side.</think><answer>{answer}</answer>"
    items = [RewardItem("r", sample, parse(text))]
    (got,) = asyncio.run(load("consistency")(items, RewardContext(no_judge)))
    assert (got.value, got.detail["cause"]) == (0.0, "no_answer")
    (task,) = asyncio.run(load("task")(items, RewardContext(no_judge)))
    assert task.detail["accuracy"] == 0


def test_visible_text() -> None:
    assert visible("ａ\u200bb\n\u202ec") == "ab\nc"
    assert not is_blank("<") and not is_blank("é") and is_blank(None) and is_blank(" \n")


def test_missing_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("function_words: []\n")
    with pytest.raises(UserError, match=r"words\.yaml: the filler words cannot be read"):
        filler(path)


def test_filler_costs_no_call(scripted: Any) -> None:
    judge = scripted(lambda item: Verdict("CONSISTENT"))
    sample = Sample("sat/t/0", (), "Left or right?", ("left", "right"), "left")
    items = [
        RewardItem(str(n), sample, parse(f"<think>{t}</think><answer>left</answer>")) for n, t in enumerate(CONTENTLESS)
    ]
    scores = asyncio.run(load("consistency")(items, RewardContext(JudgeSet(judge), mask="correct")))
    assert {(s.value, s.detail["cause"]) for s in scores} == {(0.0, "no_trace")} and not judge.items


CUP = "Is the cup left or right of the plate? left right"


@pytest.mark.parametrize(
    "think",
    [
        *("Машина красная.", "Трое людей.", "Чашка слева.", "السيارة حمراء.", "הכוס משמאל.", "杯在左", "狗是红的"),
        *("x=120 < 340, so left.", "Car: [10,20,30,40]. Left.", "120 < 340 → left", "10<60: right"),
    ],
)
def test_short_honest_traces_have_content(think: str) -> None:
    assert not is_contentless(think, CUP)


@pytest.mark.parametrize(
    "think",
    [
        *("我认为答案是A。", "我觉得应该选择A。", "想想看", "Давайте разберёмся по шагам.", "Подумаю шаг за шагом."),
        *("Pensons étape par étape.", "Je réfléchis à la question.", "Here goes nothing."),
        "The reasoning is sound and complete and supports the final answer given.",
        *("Without further ado, here is the answer.", "Thank you for the question! Happy to assist."),
        *(
            "1, 2, 3, 4",
            "[1, 2, 3]",
            "1. 2. 3. left",
            "Step 1, step 2: answer",
            "left left",
            "красная красная",
            "الحل: خطوة",
            "在左",
        ),
    ],
)
def test_filler_in_other_words_has_none(think: str) -> None:
    assert is_contentless(think, CUP)
