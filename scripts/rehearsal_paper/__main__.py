"""Rehearse paper-7b at true shapes on a CPU: every command of the preset, in its order, on a stand-in of each thing it needs.

Stand-ins: a small Qwen2.5-VL in the hub's layout with the real tokenizer (`stand_in`), photographs in the true schemas
(`records`), and one loopback endpoint for teacher, judges and baselines that writes as real models do (`endpoint`,
`styles`). configs/overlay/rehearsal-paper.yaml is what a CPU forces. After each stage its counts, shapes and files are checked;
a line per stage is printed, and one per problem. Exit code 1 if there is a problem.

Command: `make rehearsal-paper [SHORT=1]` (`python -m scripts.rehearsal_paper [--short] [--only data,mcts]`). Everything lies in
runs/rehearsal-paper: .downloads (kept), hub (kept), data, serve, logs, and the preset's run folders in paper-7b.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.schema import Config
from scripts.rehearsal_paper import downloads, photographs, prepare, records, stand_in
from scripts.rehearsal_paper.checks import Result
from scripts.rehearsal_paper.endpoint import Endpoint, running
from scripts.rehearsal_paper.log import PAGE, Log, StageLog
from scripts.rehearsal_paper.stages import OVERLAY, PRESET, Stage, stages

ROOT = Path("runs/rehearsal-paper")  # as the overlay has it
RECORDS, SHORT_RECORDS = 40, 21  # with 21, every form of image occurs
LIMIT_S = 1800.0
TIMED_OUT = 124


def environment(root: Path) -> dict[str, str]:
    """The environment of every stage: offline, one thread, no GPU, and the hub's cache of the rehearsal."""
    return {
        **os.environ,
        "HF_HUB_CACHE": str((root / "hub").resolve()),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_MININTERVAL": "15",
    }


def run_stage(stage: Stage, root: Path, overrides: list[str]) -> tuple[int, str]:
    """(exit code, output) of a stage's command; the output goes to logs/<stage>.log too."""
    words = ["--preset", PRESET, "--overlay", OVERLAY, "--runs", str(root), *stage.words]
    settings = [*overrides, *stage.settings]
    command = [sys.executable, "-m", stage.module, *words, *(["--set", *settings] if settings else [])]
    log = root / "logs" / f"{stage.name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment(root), timeout=LIMIT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
            out.write(f"\nerror: not finished after {LIMIT_S:.0f} s\n")
    return code, log.read_text(encoding="utf-8", errors="replace")


def cpu_seconds() -> float:
    """CPU seconds of this process' finished children."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def judge(stage: Stage, code: int, output: str, root: Path, endpoint: Endpoint) -> Result:
    """What the stage's check finds, or that its command failed."""
    if "Traceback (most recent call last)" in output:
        return Result({}, [f"a traceback: {output.strip().splitlines()[-1]}"])
    if code not in stage.codes:
        lines = [line for line in output.splitlines() if line.startswith("error: ")] or output.strip().splitlines()[-1:]
        return Result({}, [f"exit code {code}: {' '.join(lines)}"])
    try:
        return stage.check(root, output, endpoint)
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        return Result({}, [f"its files cannot be read: {type(error).__name__}: {error}"])


def set_up(root: Path, config: Config, short: bool, keep: bool) -> Endpoint:
    """Fetch, build and write all stand-ins; prints what there is. `keep`: leave data and run folders as they are."""
    started = time.monotonic()
    fetched = root / ".downloads"
    source, pictures = downloads.tokenizer_folder(fetched), downloads.photograph_folder(fetched)
    from eval import models

    baselines = [models.load(name).path for name in prepare.BASELINES]
    losses = prepare.models(root / "hub", source, config, baselines, config.seed)
    for stale in () if keep else ("data", PRESET, "logs"):
        shutil.rmtree(root / stale, ignore_errors=True)
    album, count = photographs.Album(pictures), SHORT_RECORDS if short else RECORDS
    seen = {} if keep else records.write(root / "data", album, count, config.seed)
    vllm = [config.models.base, config.models.teacher, config.judges.training.model, config.judges.extraction.model]
    tokenize = prepare.tokenize(stand_in.cache_folder(root / "hub", config.models.base))
    endpoint = Endpoint([*vllm, *baselines], [config.judges.evaluation.model], tokenize)
    forms = Counter(form for of_set in seen.values() for form in of_set)
    print(
        f"prepared in {time.monotonic() - started:.0f} s: {len(seen)} data sets, {forms.total()} images in {len(forms)} "
        f"forms, warmed to {losses[-1]:.2f} nats per token",
        flush=True,
    )
    return endpoint


def rehearse(root: Path, short: bool, keep: bool, only: list[str], overrides: list[str]) -> Log:
    """Run the stages (`only` these, if any are named); returns the log, which is stored too.

    Raises:
        NotFetched: a package registry cannot be reached.
    """
    began = time.monotonic()
    config = load(PRESET, "fgrpo", [f"@{OVERLAY}", *overrides])
    endpoint = set_up(root, config, short, keep)
    log = Log(short, os.cpu_count() or 1, time.monotonic() - began, [], {})
    with running(endpoint):
        prepare.address_files(root / "serve", endpoint, os.getpid())
        for stage in stages(short, overrides):
            if only and stage.name not in only:
                continue
            started, cpu = time.monotonic(), cpu_seconds()
            code, output = run_stage(stage, root, overrides)
            result = judge(stage, code, output, root, endpoint)
            seconds = time.monotonic() - started
            done = StageLog(stage.name, seconds, cpu_seconds() - cpu, result.counts, result.problems)
            log.stages.append(done)
            print(f"{stage.name:<28} {seconds:6.0f} s  {done.cpu_seconds:6.0f} s CPU  {done.words()}", flush=True)
            for problem in result.problems:
                print(f"  PROBLEM in {stage.name}: {problem} (see {root}/logs/{stage.name}.log)", flush=True)
    log.replied = {" / ".join(key): n for key, n in endpoint.replied.items()}
    log.write(root)
    tell(endpoint)
    problems = sum(len(stage.problems) for stage in log.stages)
    print(f"{problems} problems in {time.monotonic() - began:.0f} s")
    return log


def tell(endpoint: Endpoint) -> None:
    """Print what the endpoint was asked for, by kind and style."""
    for kind in dict.fromkeys(kind for _, kind, _ in endpoint.replied):
        styles = Counter({style: n for (_, k, style), n in endpoint.replied.items() if k == kind})
        print(f"endpoint, {kind}: {', '.join(f'{style} {n}' for style, n in styles.most_common())}")
    print(f"endpoint, images: {', '.join(f'{mode} {n}' for mode, n in endpoint.images.most_common())}")
    for words, n in endpoint.refused.items():
        print(f"endpoint refused {n}: {words}")


def main() -> None:
    """Entry point."""
    arguments = argparse.ArgumentParser(description="rehearse paper-7b at true shapes on a CPU")
    arguments.add_argument("--short", action="store_true", help="fewer records and steps, and one method of RL")
    arguments.add_argument("--only", default="", help="stages, such as data,mcts (their inputs must be among them)")
    arguments.add_argument("--keep", action="store_true", help="keep data and run folders of the last rehearsal")
    arguments.add_argument(
        "--publish", action="store_true", help="write docs/rehearsal.md, if nothing is left out or wrong"
    )
    arguments.add_argument(
        "--skip-without-network", action="store_true", help="where no registry can be reached, say so and succeed"
    )
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the configuration")
    args = arguments.parse_args()
    os.environ |= environment(ROOT)
    try:
        log = rehearse(ROOT, args.short, args.keep, [s for s in args.only.split(",") if s], args.set)
    except downloads.NotFetched as reason:
        if not args.skip_without_network:
            sys.exit(f"error: {reason}")
        print(f"SKIPPED, the rehearsal of paper-7b has not run: {reason}")
        return
    except UserError as error:
        sys.exit(f"error: {error}")
    failed = any(stage.problems for stage in log.stages)
    if args.publish and (args.short or args.only):
        print(f"{PAGE} is left as it is: it has complete rehearsals alone")
    elif args.publish and not failed:
        PAGE.write_text(log.page(), encoding="utf-8")
        print(f"wrote {PAGE}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
