"""Tries the families that the tests know on vLLM, and writes benchmarks/families-on-vllm.md.

    python scripts/families_on_vllm.py [FAMILY ...]                        # default all

As `families.py`, with wider layers, which vLLM's CPU build wants: the vectors of a GEM-trained
model, random as it is, must be those of the transformers engine. A process for each family.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "on_vllm"), str(ROOT / "tests")]
FILE = ROOT / "benchmarks" / "families-on-vllm.md"
_ALIKE = 0.9999  # cosine
_SECONDS = 300
_RESULTS = ("agrees", "no: ", "not tried: ")
REMEDY = ': load it with engine="transformers"'
HEAD = f"""# Families on vLLM

Made by `python scripts/families_on_vllm.py`: tiny random models on vLLM's CPU build. "Agrees" means
that every vector has a cosine of at least {_ALIKE} with that of the transformers engine. What is
refused here is for `engine="transformers"`.

| family | on vLLM |
|---|---|
"""


def main(
    families: Annotated[list[str] | None, typer.Argument(help="default all")] = None,
    one: Annotated[bool, typer.Option(help="try one family in this process")] = False,
) -> None:
    """Try families, and write their rows of the table."""
    from families import EVERY_FAMILY

    if one and families:
        print(_try(families[0]))
        return
    lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    rows = dict(line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| "))
    for family in families or EVERY_FAMILY:
        rows[family] = _in_process(family)
        print(f"{family}: {rows[family]}", flush=True)
        table = (f"| {name} | {rows[name]} |\n" for name in EVERY_FAMILY if name in rows)
        FILE.write_text(HEAD + "".join(table), encoding="utf-8")


def _in_process(family: str) -> str:
    """What a process says that tries one family."""
    command = [sys.executable, __file__, "--one", family]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"not tried to the end in {_SECONDS} s"
    said = [line for line in done.stdout.splitlines() if line.startswith(_RESULTS)]
    return said[-1] if said else f"no: its process ended with {done.returncode}"


def _try(family: str) -> str:
    from conftest import SHAPE, SMALL  # before vLLM is imported

    warnings.simplefilter("ignore")
    import helpers
    from families import build_family

    import gem_rag
    from gem_rag.errors import GemError

    with tempfile.TemporaryDirectory() as folder:
        base, trained = Path(folder) / "base", Path(folder) / "trained"
        try:
            build_family(family, **SHAPE).save_pretrained(base)
            helpers.build_tokenizer(bos=True).save_pretrained(base)
            helpers.save_gem(trained, base, k=1)
            with gem_rag.load(trained) as reference:
                wanted = reference.embed_documents(helpers.SENTENCES)
        except Exception as error:  # its own settings do not go with those
            return f"not tried: no model of this width ({_sentence(error)})"
        try:
            with gem_rag.load(
                trained, engine="vllm", in_process=True, enforce_eager=True, **SMALL
            ) as gem:
                found = gem.embed_documents(helpers.SENTENCES)
        except GemError as error:
            return f"no: {_sentence(error)}".replace(str(trained), "it")
    cosine = float((found * wanted).sum(axis=1).min())
    print(f"least cosine: {cosine:.7f}", file=sys.stderr)
    return "agrees" if cosine >= _ALIKE else f"no: a cosine of {cosine:.3f}"


def _sentence(error: BaseException) -> str:
    """What an error says first; lists of all that vLLM knows, and of what to do, are left out."""
    line, *more = str(error).strip().splitlines() or [type(error).__name__]
    line = f"{line} {more[0].strip()}" if line.endswith(":") and more else line
    line = line.split(" Supported architectures")[0].split("; load it with")[0]
    return line.replace("|", "/").replace(REMEDY, "")


if __name__ == "__main__":
    typer.run(main)
