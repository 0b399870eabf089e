"""Take the endpoint of each stage away for some seconds, and compare the stage with one whose endpoint stayed.

Each trial is a process of its own: a server on the loopback, and the stage in a child process, with real time and the default
patience. The server drops every connection from the moment when it has answered half of the stage's requests, for so many
seconds. Then either the stage ended well and its files equal those of the undisturbed run byte for byte, times aside; or it is
not done, and the same command completes it to equal files. Prints one line per trial; exit code 1 if one differs.

Command: `python -m scripts.outages [--stages search curation] [--seconds 10 60 300] [--jobs 2]` (writes to runs/outages).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.smoke_stages import MODEL, content, in_child, stages
from tests.odd_server import MODEL as SERVED
from tests.odd_server import OddServer, Raw, running

TOP = Path("runs/outages").absolute()
BASE = TOP / "base"
ROLES = ("training", "evaluation", "extraction")


class Server(OddServer):
    """Answers rightly, and is away for `seconds` once it has answered `after` requests."""

    after, seconds, vague = 10**9, 0.0, False

    def respond(self, path: str, body: bytes | None) -> Raw:
        """The right answer; `vague` hides the option from the rules, so that the extraction judge is asked."""
        out = super().respond(path, body)
        if body is not None and sum(self.good.values()) == self.after and self.seconds:
            seconds, self.seconds, self.down = self.seconds, 0.0, True
            threading.Timer(seconds, lambda: setattr(self, "down", False)).start()
        if self.vague:
            return Raw(out.status, out.body.replace(b"<answer>", b"<answer>it may well be, I think, not "), out.headers)
        return out


@dataclass(frozen=True)
class Trial:
    """A stage whose endpoint `away` ("engine" or a judge's role) goes."""

    folder: str
    needs: tuple[str, ...]  # folders of the base
    away: str
    work: Callable[[Path, dict[str, Server]], object]


def config(root: Path, servers: dict[str, Server], *more: str) -> Any:
    """The smoke preset with the engine and the judges that have servers."""
    from fgrpo.config import load

    settings = [f"data.root={BASE / 'data'}", "eval.bootstrap_samples=50", "mcts.trees_in_flight=4", "eval.limit=24"]
    if "engine" in servers:
        url = servers["engine"].url("right")
        settings += [
            "engine.kind=openai",
            f"engine.model_name={SERVED}",
            f'engine.endpoints=["{url}"]',
            "engine.concurrency=8",
        ]
    for role in ROLES:
        if role in servers:
            url = servers[role].url("right")
            values = (
                "backend=openai",
                f"model={SERVED}",
                f'endpoints=["{url}"]',
                "concurrency=8",
                "max_completion_tokens=64",
            )
            settings += [f"judges.{role}.{value}" for value in values]
    return load("smoke", MODEL, [*settings, *more])


def trials() -> dict[str, Trial]:
    """All trials by name."""
    benchmarks = ("mmvp", "cvb_2d")

    def search(root: Path, servers: dict[str, Server]) -> None:
        from mcts.run import distil

        distil(config(root, servers), root)

    def curation(root: Path, servers: dict[str, Server]) -> None:
        from data_curation.run import curate

        curate(config(root, servers), root)

    def rl(root: Path, servers: dict[str, Server]) -> None:
        from rl.train import train

        train(config(root, {"training": servers["training"]}), root)

    def evaluation(root: Path, servers: dict[str, Server]) -> None:
        from eval.run import evaluate

        evaluate(config(root, servers), "backbone-cot", benchmarks, root)

    def rescoring(root: Path, servers: dict[str, Server]) -> None:
        from eval.rescore import rescore

        folder = root / "smoke/eval/backbone-cot"
        if not (folder / "done").exists():
            evaluation(root, {name: s for name, s in servers.items() if name != "training"})
        rescore(config(root, {"training": servers["training"]}), folder, "training")

    def validation(root: Path, servers: dict[str, Server]) -> None:
        from eval.judge_validation.page import add
        from eval.judge_validation.run import REPLIES, check_world

        out = root / "smoke/judge_validation"
        out.mkdir(parents=True, exist_ok=True)
        add(out, [check_world(config(root, servers), "evaluation", 6, out / REPLIES)])
        shutil.rmtree(out / REPLIES)

    return {
        "search": Trial("mcts", ("data",), "engine", search),
        "curation": Trial("data", (), "engine", curation),
        "RL judge": Trial(f"rl-{MODEL}", ("data", "sft"), "training", rl),
        "evaluation engine": Trial("eval/backbone-cot", (), "engine", evaluation),
        "evaluation judge": Trial("eval/backbone-cot", (), "evaluation", evaluation),
        "extraction judge": Trial("eval/backbone-cot", (), "extraction", evaluation),
        "rescoring": Trial("eval/backbone-cot/rescored/training", (), "training", rescoring),
        "judge validation": Trial("judge_validation", (), "evaluation", validation),
    }


def measured(name: str, seconds: float) -> dict[str, Any]:
    """One trial; run in a process of its own."""
    trial, top = trials()[name], TOP / f"{name.replace(' ', '-')}-{seconds:g}"
    shutil.rmtree(top, ignore_errors=True)
    used = (
        ("engine", "evaluation", "extraction", "training")
        if trial.away != "engine"
        else ("engine", "evaluation", "extraction")
    )

    def run(part: str, after: int) -> tuple[int, dict[str, object], int, float]:
        root = top / part
        if not root.exists():
            root.mkdir(parents=True)
            for needed in trial.needs:
                shutil.copytree(BASE / "smoke" / needed, root / "smoke" / needed, symlinks=True)
        with ExitStack() as stack:
            servers = {role: stack.enter_context(running(Server())) for role in used}
            servers["engine"].vague = trial.away == "extraction"
            servers[trial.away].after, servers[trial.away].seconds = after, seconds if after else 0.0
            started = time.monotonic()
            code, _ = in_child(lambda: trial.work(root, servers), top / f"{part}.log")
            took = time.monotonic() - started
            return code, content(root / "smoke" / trial.folder), sum(servers[trial.away].good.values()), took

    code, expected, requests, plain_s = run("plain", 0)
    if code:
        return {"name": name, "seconds": seconds, "fault": f"ended with {code} without an outage; see {top}"}
    first, found, asked, took = run("away", max(1, requests // 2))
    is_done = (top / "away" / "smoke" / trial.folder / "done").exists()
    again = 0
    if first:
        again, found, more, _ = run("away", 0)
        asked += more
    skip = {n for n in {*expected, *found} if _is_own(n, top)}
    differs = [
        n for n in sorted({*expected, *found} - skip) if _plain(expected.get(n), top) != _plain(found.get(n), top)
    ]
    fault = f"{name}, {seconds:g} s: differs {differs}" if differs else ""
    fault += f"; the second run ended with {again}" if again else ""
    fault += "; it is marked done" if first and is_done else ""
    return {
        "name": name, "seconds": seconds, "requests": requests, "plain_s": plain_s, "took": took, "first": first,
        "repeated": asked - requests, "fault": fault,
    }  # fmt: skip


def _is_own(name: str, top: Path) -> bool:
    """Whether a file holds addresses or accounts of this run."""
    return (
        Path(name).name in ("config.json", "spend.jsonl", "scoring.json", "judge_validation.json") or ".sqlite" in name
    )


def _plain(value: object, top: Path) -> object:
    """Without the trial's own folders and the server's port."""
    if not isinstance(value, bytes):
        return value
    return re.sub(rf"{top}/(away|plain)|127\.0\.0\.1:\d+".encode(), b"", value)


def prepare() -> None:
    """The base that the trials start from."""
    shutil.rmtree(TOP, ignore_errors=True)
    TOP.mkdir(parents=True)
    for name in ("world", "data", "mcts", "sft"):
        if in_child(stages(BASE)[name].work, TOP / "base.log")[0]:
            sys.exit(f"{name} failed; see {TOP / 'base.log'}")


def main() -> None:
    """Run the trials, some at a time, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="*", default=None)
    parser.add_argument("--seconds", nargs="*", type=float, default=[10.0, 60.0])
    parser.add_argument("--jobs", type=int, default=3, help="trials at a time; they mostly wait (default: 3)")
    parser.add_argument("--keep", action="store_true", help="use the base that an earlier call built")
    parser.add_argument("--one", action="store_true", help="run one trial here and print it as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.stages[0], args.seconds[0])))
        return
    if not args.keep:
        prepare()
    queue = [(name, seconds) for seconds in sorted(args.seconds, reverse=True) for name in args.stages or trials()]
    print(
        "| stage, endpoint away | outage, s | requests | seconds without | seconds with | first run | answered twice | files |\n|---|"
        + "---:|" * 4
        + "---|---:|---|"
    )
    faults: list[str] = []
    lock = threading.Lock()

    def worker() -> None:
        while True:
            with lock:
                if not queue:
                    return
                name, seconds = queue.pop(0)
            command = [sys.executable, "-m", "scripts.outages", "--one", "--stages", name, "--seconds", str(seconds)]
            out = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = out.stdout.strip().splitlines()
            row = json.loads(lines[-1]) if lines and not out.returncode else {"fault": out.stderr[-1500:]}
            with lock:
                if row["fault"]:
                    faults.append(f"{name}, {seconds:g} s: {row['fault']}")
                if "took" in row:
                    ended = "done" if row["first"] == 0 else "not done, completed by the second"
                    print(
                        f"| {name} | {seconds:g} | {row['requests']} | {row['plain_s']:.0f} | {row['took']:.0f} | {ended} | "
                        f"{row['repeated']} | {'differ' if row['fault'] else 'equal'} |", flush=True,
                    )  # fmt: skip

    threads = [threading.Thread(target=worker) for _ in range(args.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(faults) or "complete: every stage equals one without an outage")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
