"""What a preset must reach: endpoints and the models they serve, ports that have to be free, the rollout server."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from fgrpo.errors import UserError
from fgrpo.inference import addresses
from fgrpo.inference.vllm_server import healthy
from fgrpo.schema import Config, Judge

ENDPOINT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One line: how it stands, what was looked at, and the way out where it is not ok."""

    state: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5} {self.what}" + (f"\n      -> {self.advice}" if self.advice else "")


def endpoints(config: Config) -> Iterator[Finding]:
    """Every endpoint of the engine and the judges: it answers, and serves the model that will be asked for."""
    asked: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    if config.engine.kind == "openai":
        if not config.engine.endpoints:
            yield Finding(
                "fail",
                'engine.kind is "openai" and engine.endpoints is empty',
                "SET='engine.endpoints=[\"http://host:8000/v1\"]'",
            )
        roles = {"teacher": config.models.teacher, "base": config.models.base}
        named = (config.engine.model_name,) if config.engine.model_name else tuple(roles.values())
        for entry in config.engine.endpoints:
            if not addresses.is_pattern(entry):  # one address is one stage's: either model will do
                asked.setdefault((entry, named), []).append("engine")
                continue
            for role, model in roles.items():
                yield from _collect((entry,), config.engine.model_name or model, role, role, asked)
    for key, role in (("training", "judge"), ("evaluation", "judge"), ("extraction", "extractor")):
        judge: Judge = getattr(config.judges, key)
        if judge.backend != "openai":
            continue
        yield from _collect(judge.endpoints, judge.model, f"{key} judge", role, asked)
        if not judge.endpoints and not os.environ.get(judge.api_key_env):
            advice = f"set {judge.api_key_env}, or judges.{key}.endpoints to a server of yours"
            yield Finding("fail", f"the {key} judge {judge.model} has no endpoint and no key", advice)
    for (url, models), shown in asked.items():
        yield endpoint(url, models, ", ".join(shown))


def _collect(
    entries: tuple[str, ...], model: str, shown: str, role: str, asked: dict[tuple[str, tuple[str, ...]], list[str]]
) -> Iterator[Finding]:
    """Add the addresses that `entries` mean to `asked`; an address file that is not there yet is a warning."""
    try:
        for url in addresses.resolve(entries, model):
            asked.setdefault((url, (model,)), []).append(shown)
    except UserError as error:
        if "is no address file" in str(error):
            yield Finding("fail", str(error))
        else:
            yield Finding("warn", f"{shown}: no server of {model} is up", f"make serve-{role}, when its stage is due")


def endpoint(url: str, models: tuple[str, ...], role: str) -> Finding:
    """Ask one endpoint which models it serves; one of `models` must be among them."""
    base = url.rstrip("/")
    key = os.environ.get("OPENAI_API_KEY", "none")
    try:
        asked = urllib.request.Request(f"{base}/models", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked, timeout=ENDPOINT_TIMEOUT_S) as reply:
            body: Any = json.load(reply)
        served = [str(entry["id"]) for entry in body["data"]]
    except urllib.error.HTTPError as error:
        return Finding("fail", f"{role}: {url} answers {error.code}", "is the address right (…/v1), and the key?")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Finding("fail", f"{role}: {url} does not answer ({error})", "start its server, or mend the address")
    there = [model for model in models if model in served]
    if not there:
        return Finding(
            "fail",
            f"{role}: {url} serves {', '.join(served[:4])}, not {' or '.join(models)}",
            "set the model's name, or serve it",
        )
    return Finding("ok", f"{role}: {url} serves {there[0]}")


def listens(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(ENDPOINT_TIMEOUT_S)
        return probe.connect_ex((host, port)) == 0


def ports(config: Config) -> Iterator[Finding]:
    """The rollout server (up, not yet, or its port taken by something else), and the port of training over machines."""
    if config.rl.rollout_engine == "vllm-server":
        yield rollouts(config.rl.vllm.server.replace("{preset}", config.preset))
    if config.launch.machines > 1:
        port = config.launch.port
        if listens("127.0.0.1", port):
            yield Finding("fail", f"port {port} (launch.port) is in use on this machine", "SET=launch.port=<another>")
        else:
            yield Finding("ok", f"port {port} is free for training over {config.launch.machines} machines")


def rollouts(entry: str) -> Finding:
    """How the rollout server stands that `rl.vllm.server` names: an address, or an address file."""
    later = "make serve-rollouts, when RL is due"
    try:
        found = [address.url for address in addresses.matching(entry)] if addresses.is_pattern(entry) else [entry]
    except UserError as error:
        return Finding("fail", str(error), "delete it, and start the server again")
    if not found:
        return Finding("warn", f"no rollout server has written {entry} yet", later)
    server = found[0]
    parts = urlsplit(server)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        taken = listens(host, port)
    except OSError as error:
        advice = "set rl.vllm.server to the machine that serves the rollouts"
        return Finding("fail", f"rl.vllm.server {server} cannot be reached ({error})", advice)
    if taken and healthy(server):
        return Finding("ok", f"the rollout server answers at {server}")
    if taken:
        advice = f"stop what listens on port {port} there, or choose another port in rl.vllm.server"
        return Finding("fail", f"{server} is taken by something that is no vLLM server", advice)
    return Finding("warn", f"no rollout server at {server} yet", later)
