"""How a lab's jobs stand: the state of every cell with its reason, cost and earlier attempts, and the jobs that cells share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ops.lab import repetitions, runner, stored
from ops.lab.cells import Job, Plan

COLUMNS = ("state", "reason", "earlier", "seconds", "cpu_seconds", "chain_seconds", "chain_cpu_seconds", "started")


def of_cell(job: Job, plan: Plan) -> dict[str, Any]:
    """A cell's state, why, and what it cost; the chain that it shares has its cost in columns of its own."""
    status = repetitions.status(job)
    needs = [other for other in plan.jobs if other.name in job.needs]
    state, reason = _state(repetitions.first(job), status)
    if state == runner.WAITING and not reason:
        state, reason = _blocked(needs)
    chain = next(runner.read(other.folder) for other in needs if other.name.startswith("chains/"))
    began = bool(status.started or status.attempts)
    return {
        "state": state,
        "reason": reason or None,
        "earlier": earlier(status.attempts) or None,
        "seconds": status.seconds if began else None,
        "cpu_seconds": status.cpu_seconds if began else None,
        "chain_seconds": chain.seconds if chain.started else None,
        "chain_cpu_seconds": chain.cpu_seconds if chain.started else None,
        "started": status.started or None,
    }


def _state(job: Job, status: runner.Status) -> tuple[str, str]:
    if status.is_done(job):
        damage = stored.damage(job)
        return (stored.DAMAGED, damage) if damage else (runner.DONE, "")
    if status.state == runner.DONE:
        return runner.WAITING, runner.OTHERWISE
    return status.state, status.reason


def _blocked(needs: Sequence[Job]) -> tuple[str, str]:
    """(state, reason) of a cell that waits: the first job that it needs and that failed or was stopped, now or earlier."""
    for job in needs:
        status = runner.read(job.folder)
        state, reason = status.state, status.reason
        if state == runner.WAITING and status.attempts:
            last = status.attempts[-1]
            state, reason = last["state"], last["reason"]
        elif status.key != job.key:
            continue
        if state == runner.FAILED or status.has_ended(job):
            return runner.FAILED, f"{job.name}: {reason}"
        if state == runner.STOPPED:
            return runner.WAITING, f"{job.name} was stopped: {reason}"
    return runner.WAITING, ""


def earlier(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Attempts in words: "failed: no space; stopped: …"."""
    return "; ".join(f"{one['state']}: {one['reason']}" for one in attempts)


def shared(plan: Plan) -> dict[str, runner.Status]:
    """{job: status} of the worlds, backbones, chains and anchored models of which something ran here, in order."""
    of_cells = {job.name for job in plan.of_cell.values()}
    found = {job.name: runner.read(job.folder) for job in plan.jobs if job.name not in of_cells}
    return {name: status for name, status in found.items() if status.started or status.attempts}
