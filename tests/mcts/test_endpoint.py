"""The stage over HTTP: same bytes as in process; endpoints that recover, stay down, or refuse requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgrpo.errors import UserError
from fgrpo.files import read_ids, read_jsonl, write_jsonl
from fgrpo.inference.openai_engine import OpenAISampler
from mcts.run import distil
from perf.endpoint import MODEL, Endpoint
from perf.search import AtOnce
from tests.mcts.test_run import CONFIG, seeded

QUESTIONS = 7


def client(*urls: str, attempts: int = 400) -> OpenAISampler:
    """The real client with many attempts, so that slow machines do not matter."""
    return OpenAISampler(urls, MODEL, forbidden=(), attempts=attempts, longest_wait_s=0.05)


def final_files(folder: Path) -> list[bytes]:
    """Final files that do not depend on the prompt tokens that an engine reports."""
    root = str(folder.parents[2]).encode()
    return [(folder / name).read_bytes().replace(root, b"") for name in ("traces.jsonl", "sft.jsonl", "failed.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return final_files(distil(CONFIG, seeded(tmp_path_factory.mktemp("undisturbed"), QUESTIONS), AtOnce()))


def after(endpoint: Endpoint, served: int, act: Callable[[], None]) -> threading.Thread:
    """Call `act` in a thread once the endpoint has served `served` requests."""

    def run_action() -> None:
        while endpoint.served < served:
            time.sleep(0.001)
        act()

    thread = threading.Thread(target=run_action, daemon=True)
    thread.start()
    return thread


def test_over_http_the_files_are_those_of_a_run_in_process(tmp_path: Path, undisturbed: list[bytes]) -> None:
    with Endpoint(4, 0.0) as endpoint:
        folder = distil(CONFIG, seeded(tmp_path, QUESTIONS), client(endpoint.url))
    assert final_files(folder) == undisturbed
    counts = [tree["counts"] for tree in read_jsonl(folder / "trees.jsonl")]
    assert sum(c["requests"] for c in counts) == endpoint.served
    assert sum(c["read_tokens"] for c in counts) == endpoint.served  # one token a request, as the endpoint says
    assert endpoint.most <= 4


def test_an_endpoint_that_dies_and_comes_back_changes_nothing(tmp_path: Path, undisturbed: list[bytes]) -> None:
    with Endpoint(4, 0.002) as endpoint:

        def blink() -> None:
            endpoint.is_down = True
            time.sleep(1.0)
            endpoint.is_down = False

        thread = after(endpoint, 40, blink)
        folder = distil(CONFIG, seeded(tmp_path, QUESTIONS), client(endpoint.url))
        thread.join()
    assert final_files(folder) == undisturbed


def test_an_endpoint_that_has_answered_before_is_retried_beyond_the_attempt_limit(
    tmp_path: Path, undisturbed: list[bytes]
) -> None:
    with Endpoint(4, 0.0) as endpoint:

        def goes_down(body: dict[str, Any]) -> int | None:
            if endpoint.served == 30 and not endpoint.is_down:
                endpoint.is_down = True
                threading.Timer(1.5, setattr, (endpoint, "is_down", False)).start()
            return None

        endpoint.refuses = goes_down
        patient = OpenAISampler(
            [endpoint.url], MODEL, forbidden=(), attempts=2, longest_wait_s=0.05, patience_s=300.0, rest_s=0.0
        )
        folder = distil(CONFIG, seeded(tmp_path, QUESTIONS), patient)
    assert final_files(folder) == undisturbed


def test_a_recovered_endpoint_is_used_again(tmp_path: Path) -> None:
    with Endpoint(4, 0.005) as first, Endpoint(4, 0.005) as second:
        first.is_down = True
        after(second, 40, lambda: setattr(first, "is_down", False))
        engine = OpenAISampler(
            [first.url, second.url], MODEL, forbidden=(), attempts=400, longest_wait_s=0.02, rest_s=0.02
        )
        distil(CONFIG, seeded(tmp_path, 8), engine)
    assert first.served > 5 and second.served > 40


def test_one_of_two_endpoints_may_be_dead(tmp_path: Path, undisturbed: list[bytes]) -> None:
    with Endpoint(4, 0.0) as dead, Endpoint(4, 0.0) as alive:
        dead.is_down = True
        folder = distil(CONFIG, seeded(tmp_path, QUESTIONS), client(dead.url, alive.url))
    assert final_files(folder) == undisturbed and dead.served == 0


def test_an_endpoint_that_stays_down_stops_the_stage_and_a_rerun_resumes(
    tmp_path: Path, undisturbed: list[bytes]
) -> None:
    runs = seeded(tmp_path, QUESTIONS)
    with Endpoint(4, 0.0) as endpoint:

        def goes_down(body: dict[str, Any]) -> int | None:
            endpoint.is_down = endpoint.is_down or endpoint.served >= 84  # five trees are done, two under way
            return None

        endpoint.refuses = goes_down
        with pytest.raises(UserError, match=r"of 7 trees failed.*no answer from http://127\.0\.0\.1.*rerun to resume"):
            distil(CONFIG, runs, client(endpoint.url, attempts=3))
    kept = read_ids(runs / "smoke" / "mcts" / "trees.jsonl")
    assert 0 < len(kept) < QUESTIONS
    assert final_files(distil(CONFIG, runs, AtOnce())) == undisturbed


def test_a_question_that_the_endpoint_refuses_is_counted_with_the_reason(tmp_path: Path) -> None:
    def refuses(body: dict[str, Any]) -> int | None:
        return 400 if "<b>4</b>" in body["messages"][0]["content"][-1]["text"] else None

    with Endpoint(4, 0.0, refuses) as endpoint:
        folder = distil(CONFIG, seeded(tmp_path, QUESTIONS), client(endpoint.url))
    (failed,) = read_jsonl(folder / "failed.jsonl")
    assert failed["id"] == "sat/train/4" and "the server refused it with 400: " in failed["reason"]
    assert endpoint.refused == 3  # one request per round of the expansion; a refusal is never retried


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    runs = seeded(tmp_path, QUESTIONS)
    seeds = runs / "smoke" / "data" / "seed.jsonl"
    items = list(read_jsonl(seeds))
    items[2]["images"] = ["nowhere/2.jpg"]
    write_jsonl(seeds, items)
    with Endpoint(4, 0.0) as endpoint:
        folder = distil(CONFIG, runs, client(endpoint.url))
    (failed,) = read_jsonl(folder / "failed.jsonl")
    assert failed["id"] == "sat/train/2" and "nowhere/2.jpg" in failed["reason"]
