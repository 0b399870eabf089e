"""How this machine computes: the code that MKL, oneDNN and PyTorch choose by the processor, and a fingerprint of it.

Other code sums in another order, so after some steps of training the weights of two machines differ. `ENVIRONMENT` asks all of them for
AVX2 code. Differences between vendors remain: MKL has its own matrix products for AMD, and its sqrt, exp and log, which PyTorch uses,
differ whatever is set. A cell's row names the fingerprint. Different ones mean other figures; equal ones are good evidence of equal
figures, from a small model and few steps.

Command: `python -m ops.lab.arithmetic` prints this machine's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from functools import cache

from fgrpo import cli
from fgrpo.errors import UserError
from fgrpo.installed import ROOT, importable

COLUMN = "arithmetic"  # of a cell's row
ENVIRONMENT = {
    "MKL_CBWR": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
BACKBONE = ROOT / "miniworld" / "backbone"
STEPS, TOKENS, SEED = 3, 96, 0
DIGITS = 16


@cache
def fingerprint() -> str:
    """16 hexadecimal digits: a hash of the shipped backbone after `STEPS` steps of training under `ENVIRONMENT`.

    Raises:
        UserError: the process that computes it failed.
    """
    command = (sys.executable, "-m", importable("ops.lab.arithmetic"), "--here")
    environment = {**os.environ, **ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode or len(done.stdout.strip()) != DIGITS:
        raise UserError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout.strip()


def measure() -> str:
    """The fingerprint of this process, under the environment that it has."""
    import torch
    from PIL import Image

    from fgrpo.policy import loading

    policy, processor = loading.load_policy(BACKBONE, "float32", "sdpa")
    generator = torch.Generator().manual_seed(SEED)
    pixels_HWC = torch.randint(256, (112, 112, 3), generator=generator, dtype=torch.uint8).numpy()
    words = torch.randint(len(processor.tokenizer) // 2, (TOKENS,), generator=generator).tolist()
    content = [{"type": "image"}, {"type": "text", "text": processor.tokenizer.decode(words, skip_special_tokens=True)}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = processor(text=[text], images=[Image.fromarray(pixels_HWC).resize((84, 84))], return_tensors="pt")
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimiser.zero_grad()
        logits_LV = policy(**given).logits[0]
        chosen_L = torch.multinomial(logits_LV.detach().softmax(-1), 1, generator=generator)[:, 0]
        logp_L = -torch.nn.functional.cross_entropy(logits_LV, chosen_L, reduction="none")
        (-torch.exp(logp_L - logp_L.detach()) - logp_L).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
    weights = hashlib.sha256()
    for weight in policy.parameters():
        weights.update(weight.detach().numpy().tobytes())
    return weights.hexdigest()[:DIGITS]


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description="print the fingerprint of this machine's arithmetic")
    arguments.add_argument("--here", action="store_true", help="under the environment of this process")

    def body(args: argparse.Namespace) -> None:
        print(measure() if args.here else fingerprint())

    cli.run(body, arguments)


if __name__ == "__main__":
    main()
