"""Commands print in an ASCII locale too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = "λ 1.0 ±0.2 ↑ → 中"
CODE = f"from fgrpo import cli\ncli.run(lambda args: print({TEXT!a}), cli.parser(''))"


@pytest.mark.parametrize(
    ("locale", "printed"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"lambda 1.0 +-0.2 ^ -> ?"),
        ({"PYTHONIOENCODING": "latin-1"}, b"lambda 1.0 \xb10.2 ^ -> ?"),
        ({"PYTHONIOENCODING": "utf-8"}, TEXT.encode()),
    ],
)
def test_what_the_encoding_lacks_is_written_in_ascii(locale: dict[str, str], printed: bytes) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=inherited | locale, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed


def test_a_table_is_in_columns_in_ascii_too() -> None:
    code = "from eval.layout import Table; print(Table('t', 'T ±', ('a ↑', 'b'), (('1 ±2', 'x'), ('– …', 'y'))).text())"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    words = [sys.executable, "-c", f"exec({code!a})"]
    done = subprocess.run(
        words, cwd=ROOT, env=inherited | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["T +-", "a ^    b", "-----  -", "1 +-2  x", "- ...  y"]
