"""What a judge is sent for each role and kind of endpoint, and what becomes of its reply."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.extraction import EXTRACTION_TASK, ExtractionItem
from judges.base import Meter
from judges.client import OpenAITransport
from judges.requests import BARE_LABEL, NUMBERED_LABELS, REASONED_LABEL, Unusable
from rewards.consistency import CONSISTENCY_TASK
from rewards.semantic_grounding import GROUNDING_TASK, GroundingItem
from tests.judges.test_cached_client import KEY, YES, ask, item


def picture(path: Path, kind: str = "PNG") -> str:
    Image.new("RGB", (140, 56), "red").save(path, kind)
    return str(path)


def test_grounding_sends_pictures_and_gets_one_verdict_a_sentence(
    fault_server: Any, judge_config: Any, tmp_path: Path
) -> None:
    images = (picture(tmp_path / "a.png"), picture(tmp_path / "b.jpg", "JPEG"), picture(tmp_path / "c.bmp", "BMP"))
    item = GroundingItem(
        "g",
        images,
        "Where?",
        ("It is at <bbox>[14,28,70,56]</bbox>.", "It is red."),
        ((), ("It is at <bbox>[14,28,70,56]</bbox>.", "Wait.")),
        ((140, 56),) * 3,
    )
    labels = {"1": {"why": "a", "label": "CORRECT"}, "2": {"why": "b", "label": "SKIP"}}

    def behave(_: int, body: dict[str, Any]) -> Any:
        keys = body["response_format"]["json_schema"]["schema"]["required"]
        return json.dumps({key: labels[key] for key in keys})

    async def go() -> None:
        async with fault_server(behave) as server:
            (verdicts,) = await ask(judge_config(server.url), lambda judges: judges.ask_several(GROUNDING_TASK, [item]))
            assert [v.label for v in verdicts] == ["CORRECT", "SKIP"]
            content = server.bodies[0]["messages"][0]["content"]
            kinds = [part["image_url"]["url"].split(";")[0] for part in content[:3]]
            assert kinds == ["data:image/png", "data:image/jpeg", "data:image/png"]
            assert '1. "It is at [100,500,500,1000]."\n- "Wait."\n2. "It is red."' in content[3]["text"]
            assert "0 to 1000" in content[3]["text"]
            assert server.bodies[0]["max_completion_tokens"] == 64 + 48  # two verdicts
            (verdicts,) = await ask(
                judge_config(server.url, sentence_calls=True), lambda judges: judges.ask_several(GROUNDING_TASK, [item])
            )
            assert [v.label for v in verdicts] == ["CORRECT", "CORRECT"]
            assert len(server.bodies) == 3 and server.bodies[2]["max_completion_tokens"] == 64

    asyncio.run(go())


def test_broken_pictures_and_wrong_length_fail_every_sentence(
    fault_server: Any, judge_config: Any, tmp_path: Path
) -> None:
    whole = picture(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes(Path(whole).read_bytes()[:60])
    one = json.dumps({"1": {"why": "a", "label": "CORRECT"}})

    async def go() -> None:
        async with fault_server(lambda n, body: one) as server:
            for image in (str(tmp_path / "missing.png"), str(tmp_path / "cut.png"), whole):
                item = GroundingItem("g", (image,), "?", ("A.", "B."), ((), ("A.",)))
                (verdicts,) = await ask(
                    judge_config(server.url), lambda judges, i=item: judges.ask_several(GROUNDING_TASK, [i])
                )
                assert [v.failed for v in verdicts] == [True, True]
            assert len(server.bodies) == 1  # no call is sent without its images
            nothing = GroundingItem("g", (whole,), "?", (), ())
            assert await ask(
                judge_config(server.url), lambda judges: judges.ask_several(GROUNDING_TASK, [nothing])
            ) == [()]

    asyncio.run(go())


def test_extraction_is_a_structured_choice_of_letters(fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        replies = iter(["B", " 0\n", "C", "b", "A or B"])
        async with fault_server(lambda n, body: next(replies)) as server:
            items = [ExtractionItem(str(n), ("left", "right"), f"span {n}") for n in range(5)]
            verdicts = await ask(
                judge_config(server.url, concurrency=1), lambda judges: judges.ask(EXTRACTION_TASK, items)
            )
            assert [v.label for v in verdicts] == ["B", "0", None, "B", None]
            assert [v.failed for v in verdicts] == [False, False, True, False, True]
            assert server.bodies[0]["structured_outputs"] == {"choice": ["A", "B", "0"]}
            assert "response_format" not in server.bodies[0]
            assert server.bodies[0]["temperature"] == 0.0

    asyncio.run(go())


def test_reasoning_models_get_effort_and_no_temperature(fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: YES) as server:
            config = judge_config(server.url, reasoning_effort="medium", max_completion_tokens=1024)
            await ask(config, lambda judges: judges.ask(CONSISTENCY_TASK, [item(0)]))
            body = server.bodies[0]
            assert body["reasoning_effort"] == "medium" and body["max_completion_tokens"] == 1024
            assert "temperature" not in body and body["response_format"]["json_schema"]["strict"] is True

    asyncio.run(go())


def test_openais_own_endpoint_gets_a_schema_where_it_has_no_structured_choice(
    judge_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert OpenAITransport(judge_config("https://api.openai.com/v1"), Meter())._takes_choices is False
    assert OpenAITransport(judge_config("http://127.0.0.1:8000/v1"), Meter())._takes_choices is True
    config = judge_config()
    call = EXTRACTION_TASK.call(ExtractionItem("x", ("left", "right"), "the former"))
    body = OpenAITransport(config, Meter())._body(call, (), 9)
    assert "structured_outputs" not in body
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True and form["schema"]["properties"]["label"]["enum"] == ["A", "B", "0"]
    assert call.parse('{"label": "B"}') == (("B", ""),)
    for bad in (
        '{"label": "C"}',
        '{"label": ["B"]}',
        '{"why": ""}',
        '{"label": "B", "label": "A"}',
        '{"label": "B"} B',
    ):
        with pytest.raises(Unusable):
            call.parse(bad)


def test_pictures_as_files_share_the_cache_with_base64(fault_server: Any, judge_config: Any, tmp_path: Path) -> None:
    """An image file is sent by name if every reader decodes it alike, else as data; the key is the image's content."""
    images = (picture(tmp_path / "a b.png"), picture(tmp_path / "c.bmp", "BMP"))
    item = GroundingItem("g", images, "Where?", ("It is red.",), ((),))
    label = json.dumps({"1": {"why": "", "label": "CORRECT"}})

    async def go() -> None:
        async with fault_server(lambda n, body: label) as server:
            config = judge_config(server.url, images="file", cache=str(tmp_path / "cache.sqlite"))
            (first,) = await ask(config, lambda judges: judges.ask_several(GROUNDING_TASK, [item]))
            urls = [part["image_url"]["url"] for part in server.bodies[0]["messages"][0]["content"][:2]]
            assert urls[0] == f"file://{tmp_path}/a%20b.png" and urls[1].startswith("data:image/png;base64,")
            other = config.model_copy(update={"images": "base64"})
            (second,) = await ask(other, lambda judges: judges.ask_several(GROUNDING_TASK, [item]))
            assert first == second and len(server.bodies) == 1
            picture(tmp_path / "a b.png", "JPEG")  # another content under the same name is another question
            await ask(other, lambda judges: judges.ask_several(GROUNDING_TASK, [item]))
            assert len(server.bodies) == 2

    asyncio.run(go())


VERDICT = '{"why": "x", "label": "CONSISTENT"}'
READABLE = [
    (VERDICT, ()),
    (f" {VERDICT}\n", ()),
    (f"```json\n{VERDICT}\n```", ("code fence",)),
    (f"```\n{VERDICT}\n```\n", ("code fence",)),
    (f"```JSON {VERDICT}```", ("code fence",)),
    (f"<think>Hm.</think>{VERDICT}", ("think block",)),
    (f"<THINK>\nHm.\n</THINK>\n\n```json\n{VERDICT}\n```", ("think block", "code fence")),
    (f"<thinking>{{}}</thinking> {VERDICT}", ("think block",)),
    (f"opened by the template </think>{VERDICT}", ("think block",)),
    ('{"why": "x", "label": "CONSISTENT", "score": 1}', ("further key",)),
    ('{"why": "x", "label": "consistent"}', ("other case",)),
    ('{"why": "x", "label": " Consistent "}', ("other case",)),
    ('<think>a</think>{"why": "x", "label": "consistent", "n": null}', ("think block", "further key", "other case")),
    ("\ufeff" + VERDICT, ()),
    (f"◁think▷Hm.◁/think▷{VERDICT}", ("think block",)),
    (f"<|START_THINKING|>Hm.<|END_THINKING|>{VERDICT}", ("think block",)),
    (
        f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{VERDICT}<|return|>",
        ("think block",),
    ),
    ('{"why": "x", "label": "CONSISTENT", "verdict": "consistent"}', ("further key",)),
    ('{"why": "x", "label": "CONSISTENT", "verdict": "good"}', ("further key",)),
    (f"~~~json\n{VERDICT}\n~~~", ("code fence",)),
    (f"{VERDICT}<|im_end|>\n", ("end of turn",)),
    (f"<think>Hm.</think>```json\n{VERDICT}\n```</s>", ("end of turn", "think block", "code fence")),
    ('{"why": "x", "Label": "CONSISTENT"}', ("other case",)),
    ('{"WHY": "x", " label": "consistent"}', ("other case",)),
    ('{"why": "x", "label": "CONSISTENT", "all": [{"label": "CONSISTENT"}, 3, null]}', ("further key",)),
]


@pytest.mark.parametrize("reply", READABLE, ids=range(len(READABLE)))
def test_a_reply_with_one_reading_is_read_and_counted_by_form(
    reply: tuple[str, tuple[str, ...]], fault_server: Any, judge_config: Any
) -> None:
    text, forms = reply

    async def go() -> None:
        async with fault_server(lambda n, body: text) as server:

            async def body(judges: Any) -> None:
                (verdict,) = await judges.ask(CONSISTENCY_TASK, [item(0)])
                assert (verdict.label, verdict.reason) == ("CONSISTENT", "x")
                assert judges.meter.forms == dict.fromkeys(forms, 1) == judges.meter.to_dict()["forms"]

            await ask(judge_config(server.url), body)

    asyncio.run(go())


def test_an_unusable_reply_is_asked_again_where_another_may_come(fault_server: Any, judge_config: Any) -> None:
    """At temperature 0 the same reply would come; a judge that reasons, or whose temperature is left out, samples."""

    async def count(usable_from: int, **more: Any) -> tuple[int, bool]:
        async with fault_server(lambda n, body: YES if n >= usable_from else "garbage") as server:
            (verdict,) = await ask(
                judge_config(server.url, attempts=3, **more), lambda judges: judges.ask(CONSISTENCY_TASK, [item(0)])
            )
            return len(server.bodies), verdict.failed

    async def go() -> None:
        assert await count(1) == (1, True)
        for sampling in ({"reasoning_effort": "low"}, {"leave_out": ("temperature",)}):
            assert await count(2, **sampling) == (3, False)
            assert await count(9, **sampling) == (3, True)

    asyncio.run(go())


@pytest.mark.parametrize(
    "why", ["ends at </think> early", "a ```fence``` in it", "<think>", "<|channel|>final<|message|>", "◁/think▷"]
)
@pytest.mark.parametrize("form", ["{}", "```json\n{}\n```", "<think>Hm.</think>{}"])
def test_a_reason_may_hold_tags_and_fences(why: str, form: str) -> None:
    reply = form.format(json.dumps({"why": why, "label": "B"}, ensure_ascii=False))
    assert REASONED_LABEL.parse(reply, ("A", "B"), 1) == (("B", why),)


@pytest.mark.parametrize(
    "reply", [{"why": "x", "Label": "A", " LABEL": "A"}, {"Why": "x", "Label": "A", "other": "b"}, {"Why": "x"}]
)
def test_keys_in_another_case_contradict_as_others_do(reply: dict[str, str]) -> None:
    with pytest.raises(Unusable):
        REASONED_LABEL.parse(json.dumps(reply), ("A", "B"), 1)


CONTRADICTIONS = [
    {"why": "x", "label": "CORRECT", "other": {"label": "INCORRECT"}},
    {"why": "x", "label": "CORRECT", "all": [["correct"], {"x": [" incorrect "]}]},
    {"why": "x", "label": "CORRECT", "Label": "INCORRECT"},
    {"why": "x", "label": "CORRECT", "Label": "CORRECT"},
    {"why": "x", "label": "CORRECT", " label ": "INCORRECT"},
    {"why": "x", "label": "CORRECT", "WHY": "y"},
    {"why": "x", "label": "CORRECT", "verdict": "INCORRECT"},
    {"why": "x", "label": "INCORRECT", "verdict": "correct "},
    {"why": "x", "label": "CORRECT", "grade": "incorrect"},
]


@pytest.mark.parametrize("verdict", CONTRADICTIONS)
@pytest.mark.parametrize("suffix", ["", "-k7"])
def test_two_labels_in_one_verdict_are_no_verdict(verdict: dict[str, str], suffix: str) -> None:
    labels = ("CORRECT" + suffix, "INCORRECT" + suffix)
    marked = {**verdict, "label": verdict["label"] + suffix}
    kept = {key: marked[key] for key in ("why", "label")}
    for parse, good, bad, size in (
        (REASONED_LABEL.parse, kept, marked, 1),
        (NUMBERED_LABELS.parse, {"1": kept, "2": kept}, {"1": kept, "2": marked}, 2),
        (BARE_LABEL.parse, {"label": marked["label"]}, marked, 1),
    ):
        assert {label for label, _ in parse(json.dumps(good), labels, size)} == {marked["label"]}
        if parse is BARE_LABEL.parse and "WHY" in marked:
            continue  # a bare label has no reason
        with pytest.raises(Unusable):
            parse(json.dumps(bad), labels, size)
    with pytest.raises(Unusable):
        other = next(label for label in ("CORRECT", "INCORRECT") if label != verdict["label"])
        NUMBERED_LABELS.parse(json.dumps({"1": kept, "verdict": other}), labels, 1)
