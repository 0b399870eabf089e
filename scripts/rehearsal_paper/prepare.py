"""Everything a stage of the preset expects to find: models in the hub's cache, data sets below data.root, address files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from fgrpo import prompts
from fgrpo.inference import addresses
from fgrpo.schema import Config
from scripts.rehearsal_paper import stand_in, tokenizer
from scripts.rehearsal_paper.endpoint import Endpoint

BASELINES = ("treevgr", "r1-onevision")  # evaluated behind the endpoint: they need a tokenizer, and no weights
WARM_STEPS = 96
_QUESTIONS = 24
DONE = "done.json"


def models(hub: Path, source: Path, config: Config, served: Sequence[str], seed: int) -> list[float]:
    """Write the base model, and the small files of the teacher and of other `served` models, to the hub's cache `hub`.

    Args:
        source: the folder of the fetched tokenizer.

    Returns:
        The losses of warming the base model, in nats per token; those of the earlier run if the models are there.
    """
    from fgrpo.policy import loading

    done = hub / DONE
    if done.is_file():
        return [float(loss) for loss in json.loads(done.read_text(encoding="utf-8"))]
    shutil.rmtree(hub, ignore_errors=True)
    shapes = stand_in.Shapes()
    for name in dict.fromkeys([config.models.base, config.models.teacher, *served]):
        folder = stand_in.cache_folder(hub, name)
        tokenizer.save(source, folder)
        stand_in.save_small_files(folder, shapes, stand_in.special_ids(folder))
    base = stand_in.cache_folder(hub, config.models.base)
    model, processor = stand_in.build(base, shapes, seed), loading.load_processor(base)
    losses = stand_in.warm(model, processor, questions(config, seed), WARM_STEPS, seed)
    stand_in.save(model, base)
    done.write_text(json.dumps(losses), encoding="utf-8")
    return losses


def questions(config: Config, seed: int) -> list[str]:
    """Prompts of the policy about things, to warm it with."""
    rng, template = random.Random(seed), prompts.read_for(config.policy, config.prompts.think)
    things = ("red cup", "tall tree", "white coat", "front wheel", "black helmet")
    out = []
    for _ in range(_QUESTIONS):
        one, two = rng.sample(things, 2)
        first, second = rng.sample(("left", "right"), 2)
        asked = f"Is the {one} {first} or {second} of the {two}?"
        out.append(prompts.render(template, question=asked, options=f"A. {first}\nB. {second}"))
    return out


def address_files(folder: Path, endpoint: Endpoint, pid: int) -> None:
    """Write one address file for each model that `endpoint` serves, as `make serve-<role>` does."""
    shutil.rmtree(folder, ignore_errors=True)
    for server, names in endpoint.models.items():
        for number, name in enumerate(names):
            address = addresses.Address(server, name, endpoint.url(server), "127.0.0.1", pid)
            addresses.write(folder / f"{server}-{number}.json", address)


def tokenize(folder: Path) -> Callable[[str], list[int]]:
    """The tokenizer in `folder`, from text to ids."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        return list(loaded.encode(text, add_special_tokens=False).ids)

    return ids
