"""What a preset must reach: endpoints and the models they serve, free ports, the rollout server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from fgrpo.errors import UserError
from fgrpo.inference import addresses
from fgrpo.inference.connection import key_in, variable_for
from fgrpo.inference.http_get import get
from fgrpo.inference.replies import BadReply, model_owners
from fgrpo.inference.vllm_server import healthy
from fgrpo.schema import Config, Judge

ENDPOINT_TIMEOUT_S = 5.0
Users = dict[tuple[str, tuple[str, ...], str | None], list[str]]  # (address, models, `api_key_env`) -> who uses it


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: a state, what was examined, and what to do if the state is not ok."""

    state: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5} {self.what}" + (f"\n      -> {self.advice}" if self.advice else "")


def endpoints(config: Config) -> Iterator[Finding]:
    """Check that each endpoint of the engine and the judges answers and serves the model that its stage requests."""
    users: Users = {}
    if config.engine.kind == "openai":
        if not config.engine.endpoints:
            yield Finding(
                "fail",
                'engine.kind is "openai" and engine.endpoints is empty',
                f"make mcts PRESET={config.preset} SET='engine.endpoints=[\"http://host:8000/v1\"]'",
            )
        roles = {"teacher": config.models.teacher, "base": config.models.base}
        named = (config.engine.model_name,) if config.engine.model_name else tuple(roles.values())
        for entry in config.engine.endpoints:
            if not addresses.is_pattern(entry):  # one address serves one stage: either model is right
                users.setdefault((entry, named, config.engine.api_key_env), []).append("engine")
                continue
            for role, model in roles.items():
                wanted, variable = config.engine.model_name or model, config.engine.api_key_env
                yield from _collect((entry,), wanted, variable, role, role, users, config.preset)
    for key, role in (("training", "judge"), ("evaluation", "judge"), ("extraction", "extractor")):
        judge: Judge = getattr(config.judges, key)
        if judge.backend != "openai":
            continue
        yield from _collect(judge.endpoints, judge.model, judge.api_key_env, f"{key} judge", role, users, config.preset)
        if not judge.endpoints and not key_in(needed := variable_for(None, judge.api_key_env)):
            advice = f"export {needed}=your-key  # or SET=judges.{key}.endpoints=[<address>], a server of your own"
            yield Finding("fail", f"the {key} judge {judge.model} has no endpoint and no key", advice)
    for (url, models, variable), names in users.items():
        yield endpoint(url, models, ", ".join(names), variable)


def _collect(
    entries: tuple[str, ...], model: str, variable: str | None, user: str, role: str, users: Users, preset: str
) -> Iterator[Finding]:
    """Add the addresses of `entries` to `users`. An address file that does not exist yet is a warning."""
    try:
        for url in addresses.resolve(entries, model):
            users.setdefault((url, (model,), variable), []).append(user)
    except UserError as error:
        if "is no address file" in str(error):
            yield Finding("fail", str(error))
        else:
            yield Finding(
                "warn", f"{user}: no server of {model} is up", f"make serve-{role} PRESET={preset}  # before its stage"
            )


def endpoint(url: str, models: tuple[str, ...], role: str, named: str | None) -> Finding:
    """Check that one endpoint answers and serves one of `models`.

    Args:
        named: the environment variable that the configuration names for this endpoint's API key. Like a stage, the doctor
            sends no other key (`fgrpo.inference.connection.variable_for`), and none to where the endpoint redirects.
    """
    try:
        root = addresses.normal_url(url)
    except UserError as error:
        return Finding("fail", f"{role}: {error}", "# fix the address (http://host:port/v1)")
    variable = variable_for(url, named)
    key = key_in(variable)
    try:
        reply = get(models_at(root), ENDPOINT_TIMEOUT_S, {"Authorization": f"Bearer {key}"} if key else {})
        if reply.status != 200:
            key_advice = f"the key in {variable}" if variable else "set api_key_env, if it requires a key"
            advice = f"# check the address (…/v1) and {key_advice}"
            return Finding("fail", f"{role}: {url} answers {reply.status}", advice)
        served = list(model_owners(reply.body))
    except (OSError, BadReply) as error:
        return Finding("fail", f"{role}: {url} does not answer ({error})", "# start its server, or fix the address")
    matching = [model for model in models if model in served]
    if not matching:
        return Finding(
            "fail",
            f"{role}: {url} serves {', '.join(served[:4]) or 'no model'}, not {' or '.join(models)}",
            "# set the model's name to the served one, or serve the right model",
        )
    return Finding("ok", f"{role}: {url} serves {matching[0]}")


def models_at(root: str) -> str:
    """The address of the list of models below an API root, whose query stays."""
    path, mark, query = root.partition("?")
    return f"{path}/models{mark}{query}"


def is_vllm(url: str) -> bool:
    """Whether a healthy vLLM server answers at `url`: `/health` says nothing, and vLLM owns the models that are listed."""
    if not healthy(url.removesuffix("/")):
        return False
    try:
        reply = get(models_at(addresses.normal_url(url)), ENDPOINT_TIMEOUT_S)
        return reply.status == 200 and "vllm" in model_owners(reply.body).values()
    except (OSError, BadReply):
        return False


def listens(host: str, port: int) -> bool:
    """Whether a process listens on this port."""
    with socket.socket() as probe:
        probe.settimeout(ENDPOINT_TIMEOUT_S)
        return probe.connect_ex((host, port)) == 0


def ports(config: Config) -> Iterator[Finding]:
    """Check the rollout server (up, not yet up, or its port in use), and the port of training over several machines."""
    if config.rl.rollout_engine == "vllm-server":
        yield rollouts(config.rl.vllm.server.replace("{preset}", config.preset), config.preset)
    if config.launch.machines > 1:
        port = config.launch.port
        if listens("127.0.0.1", port):
            yield Finding(
                "fail",
                f"port {port} (launch.port) is in use on this machine",
                f"# choose another: SET=launch.port={port + 1}",
            )
        else:
            yield Finding("ok", f"port {port} is free for training over {config.launch.machines} machines")


def rollouts(entry: str, preset: str) -> Finding:
    """Check the rollout server that `rl.vllm.server` names by an address or an address file."""
    later = f"make serve-rollouts PRESET={preset}  # before RL"
    try:
        urls = [address.url for address in addresses.matching(entry)] if addresses.is_pattern(entry) else [entry]
    except UserError as error:
        return Finding("fail", str(error), f"rm {entry}  # then start the server again")
    if not urls:
        return Finding("warn", f"no rollout server has written {entry} yet", later)
    server, advice = urls[0], "# set rl.vllm.server to the address of the rollout server (http://host:port)"
    try:
        parts = urlsplit(addresses.normal_url(server))
    except UserError as error:
        return Finding("fail", f"rl.vllm.server: {error}", advice)
    host, port = parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        taken = listens(host, port)
    except OSError as error:
        return Finding("fail", f"rl.vllm.server {server} cannot be reached ({error})", advice)
    if taken and is_vllm(server):
        return Finding("ok", f"the rollout server answers at {server}")
    if taken:
        advice = f"# stop the process on port {port}, or choose another port in rl.vllm.server"
        return Finding("fail", f"{server} is in use by something that is not a vLLM server", advice)
    return Finding("warn", f"no rollout server at {server} yet", later)
