"""Harnesses as commands over one endpoint: resumption, faults and absence, with a small harness of the test's own."""

from __future__ import annotations

import csv
import json
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from fgrpo.errors import UserError
from fgrpo.types import Sample
from perf import peers
from perf.peers_harness import HEADINGS, Faulty, Found, Killed, Runner, Whole, absent, row

QUESTIONS = 12
SCRIPT = """
import json, pathlib, sys, openai
url, folder, careful = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3] == "careful"
out = folder / "answers.jsonl"
held = {json.loads(line)["id"] for line in out.read_text().splitlines()} if careful and out.exists() else set()
client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
with out.open("a" if careful else "w") as file:
    for n in range(int(sys.argv[4])):
        if n in held: continue
        try:
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": str(n)}])
        except Exception:
            continue
        print(json.dumps({"id": n}), file=file, flush=True)
"""


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    path = tmp_path / "image.png"
    Image.new("RGB", (28, 28), "white").save(path)
    choices = [("left", "right"), ("one", "two", "three")]
    return [
        Sample(f"q/{n}", (str(path),), f"Which, {n}?", choices[n % 2], choices[n % 2][-1]) for n in range(QUESTIONS)
    ]


def harness(manner: str) -> peers.Harness:
    """A client that asks one question after the other; "careful": it skips those that it has answers to."""

    def prepare(folder: Path, samples: Sequence[Sample]) -> None:
        (folder / "client.py").write_text(SCRIPT)

    def command(python: str, url: str, folder: Path) -> list[str]:
        return [python, str(folder / "client.py"), url, str(folder), manner, str(QUESTIONS)]

    def answered(folder: Path) -> int:
        return len({json.loads(line)["id"] for line in (folder / "answers.jsonl").read_text().splitlines()})

    return peers.Harness(manner, "none", "pip install it", prepare, command, answered)


def runner(manner: str, samples: list[Sample]) -> Runner:
    return Runner(harness(manner), sys.executable, samples, 0.0)


def test_a_kill_in_the_middle_costs_what_the_harness_had_not_stored(samples: list[Sample]) -> None:
    careful, careless = (runner(m, samples).killed() for m in ("careful", "careless"))
    assert careful.repeated <= 1 and careless.repeated >= QUESTIONS // 2
    assert careful.lost == careless.lost == 0


def test_faults_lose_the_answers_of_a_client_that_does_not_retry(samples: list[Sample]) -> None:
    found = runner("careful", samples).faulty()
    assert found.requests == QUESTIONS and 0 < found.lost < QUESTIONS


def test_a_whole_run_has_all_answers_or_is_an_error(samples: list[Sample]) -> None:
    whole = runner("careful", samples).whole()
    assert 0 < whole.start_s <= whole.seconds
    with pytest.raises(UserError, match="stored 12 answers to 13 questions"):
        runner("careful", [*samples, samples[0]]).whole()


def test_a_harness_that_fails_says_its_last_lines(samples: list[Sample]) -> None:
    broken = harness("careful")
    runner = Runner(broken, sys.executable, samples, 0.0)
    object.__setattr__(broken, "command", lambda python, url, folder: [python, "-c", "raise SystemExit('no data')"])
    with pytest.raises(UserError, match=r"careful ended with 1:\nno data"):
        runner.whole()
    with pytest.raises(UserError, match="before it was killed"):
        runner.killed()


def test_a_peer_is_found_in_the_first_environment_that_has_it(tmp_path: Path) -> None:
    environments = []
    for n, code in enumerate((1, 0, 0)):
        python = tmp_path / str(n) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nexit {code}\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        environments.append(str(tmp_path / str(n)))
    assert peers.interpreter(peers.LMMS, environments) == str(tmp_path / "1/bin/python")
    assert peers.interpreter(peers.VLM, environments[:1]) is None
    assert "not installed" in absent(peers.VLM)[0] and len(absent(peers.VLM)) == len(HEADINGS)
    with pytest.raises(UserError, match=r"PEERS names .*nowhere"):
        peers.interpreter(peers.LMMS, [str(tmp_path / "nowhere")])


def test_the_environments_come_from_the_option_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS", "/a:/b")
    assert peers.named_environments(None) == ["/a", "/b"] and peers.named_environments("/c") == ["/c"]
    monkeypatch.delenv("PEERS")
    assert peers.named_environments(None) == []


def test_both_peers_get_every_question_with_its_image_and_gold_answer(tmp_path: Path, samples: list[Sample]) -> None:
    peers.write_lmms(tmp_path, samples)
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert [(r["question"], r["answer"]) for r in rows] == [(s.question, s.answer) for s in samples]
    assert all(Path(path).is_absolute() and Path(path).exists() for r in rows for path in r["images"])
    assert str(tmp_path / "rows.json") in (tmp_path / "same_questions.yaml").read_text()
    peers.write_vlm(tmp_path, samples)
    with (tmp_path / "same_questions.tsv").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [row[row["answer"]] for row in table] == [s.answer for s in samples]
    assert table[0]["C"] == "" and table[1]["C"] == "three" and len(table[0]["image"]) > 50


def test_notes_of_failures_are_no_answers(tmp_path: Path) -> None:
    out = tmp_path / "out" / "m"
    out.mkdir(parents=True)
    lines = [{"resps": [["(A)"]]}, {"resps": [[f"{peers.LMMS_FAILED} after 5 retries] x"]]}]
    (out / "1_samples_same_questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert peers.lmms_answered(tmp_path) == 1
    with (out / "scripted_same_questions.tsv").open("w") as file:
        file.write(f"index\tprediction\n0\tA\n1\t{peers.VLM_FAILED} via API. \n2\t\n")
    assert peers.vlm_answered(tmp_path) == 1


def test_the_row_compares_with_our_harness_in_the_same_round() -> None:
    base = Found([Whole(2.0, 10.0), Whole(3.0, 20.0)], [Killed(32, 0), Killed(30, 0)], [Faulty(15.0, 140, 0)] * 2)
    other = Found([Whole(9.0, 40.0), Whole(9.0, 40.0)], [Killed(50, 0), Killed(60, 3)], [Faulty(60.0, 140, 5)] * 2)
    assert row("theirs", other, base, 100) == (
        "theirs",
        "9.0 (9.0–9.0)",
        "2.5",
        "0.33 (0.25–0.50)",
        "55 (50–60), 3 lost",
        "0.25 (0.25–0.25)",
        "1.50 (1.50–1.50)",
        "10 of 200",
    )
    assert row("ours", base, base, 100)[3] == "1.00 (1.00–1.00)" and len(row("x", base, base, 100)) == len(HEADINGS)
