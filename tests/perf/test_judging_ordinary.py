"""The ordinary reward functions against a scripted judge: their requests, their rewards, and lost verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from perf import judging_ordinary
from perf.judging import items
from perf.judging_ordinary import FAULTS, FUNCTIONS, Batch, judged, table
from tests.loopback import Replies, serving

BATCH = 5


class Judge(Replies):
    """Answers "consistent", except that it fails for the second question, at every attempt."""

    asked: list[str] = []  # noqa: RUF012 - one server a test
    fails = False

    def do_POST(self) -> None:
        body = self.body()
        self.asked.append(body)
        if self.fails and f"{BATCH + 1}." in body:
            self.reply(500, {"error": {"message": "x"}})
        else:
            self.verdict("CONSISTENT")


@pytest.fixture
def url() -> Iterator[str]:
    Judge.asked.clear()
    Judge.fails = False
    with serving(Judge) as address:
        yield address


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_form_asks_every_question_once_and_gets_every_verdict(name: str, url: str) -> None:
    batch = judged(FUNCTIONS[name], url, items(BATCH, BATCH))
    assert (batch.rollouts, batch.lost, len(Judge.asked)) == (BATCH, 0, BATCH)


def test_all_forms_send_the_same_bodies(url: str) -> None:
    sent = []
    for function in FUNCTIONS.values():
        Judge.asked.clear()
        function(url, items(BATCH, BATCH))
        sent.append(sorted(json.dumps(json.loads(body), sort_keys=True) for body in Judge.asked))
    assert sent[0] == sent[1] == sent[2] and len(set(sent[0])) == BATCH


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "the service"])
def test_an_ordinary_function_loses_the_verdict_after_three_attempts(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    Judge.fails = True
    batch = judged(FUNCTIONS[name], url, items(BATCH, BATCH))
    assert batch.lost == 1 and len(Judge.asked) == BATCH + 2


def test_a_wrong_reward_is_an_error() -> None:
    with pytest.raises(ValueError, match="wrong"):
        judged(lambda url, asked: [0.0] * len(asked), "", items(2, 0))
    with pytest.raises(ValueError, match="2 questions, 1 rewards"):
        judged(lambda url, asked: [1.0], "", items(2, 0))


def test_the_table_compares_with_the_service_under_the_same_faults() -> None:
    one, two, service = FUNCTIONS
    found = {
        (one, 0.0): [Batch(12.0, 64, 0), Batch(14.0, 64, 0)],
        (service, 0.0): [Batch(1.0, 64, 0), Batch(2.0, 64, 0)],
        (two, FAULTS): [Batch(6.0, 64, 8), Batch(6.0, 64, 0)],
        (service, FAULTS): [Batch(2.0, 64, 0), Batch(2.0, 64, 0)],
    }
    assert table(found)[0] == (one, "13.00 (12.00–14.00)", "8.67 (7.00–12.00)", "0.0% (0 of 128)")
    assert table(found)[2] == (f"{two}, 30% faults", "6.00 (6.00–6.00)", "3.00 (3.00–3.00)", "6.2% (8 of 128)")
    assert judging_ordinary.HEADINGS[2] == "over the service"
