"""Uploading and downloading checkpoints, by huggingface_hub's own client, on a hub of this
machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, running_hub

import gem_rag
from gem_rag.core.checkpoint import ADAPTER_NAME, open_checkpoint, save_adapter
from gem_rag.errors import InputError
from gem_rag.interop.hub import push

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]
TEXTS = ["a quick fox", "x"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Run a command, or a program, that knows no other hub."""

    def call(*arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
        how = ["-c", program] if program else ["-m", "gem_rag"]
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x",
            "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, *how, *arguments], capture_output=True, text=True, env=environment,
            check=False, timeout=120,
        )  # fmt: skip

    return call


@pytest.fixture
def adapter(gem_folder: Any, plain_folder: Any, tmp_path: Path) -> Path:
    """An adapter-only checkpoint with a card."""
    whole = open_checkpoint(gem_folder("llama"))
    special = whole.adapter()
    assert special is not None
    base = open_checkpoint(plain_folder("llama"))
    save_adapter(tmp_path / "adapter", base, whole.config, special)
    (tmp_path / "adapter" / "README.md").write_text(f"---\nbase_model: {base.name}\n---\n# Mine\n")
    return tmp_path / "adapter"


def test_an_adapter_is_pushed_and_loaded_by_its_name(
    hub: Hub, run: Run, adapter: Path, plain_folder: Any, tmp_path: Path
) -> None:
    base = plain_folder("llama")
    hub.repos["me/base"] = {file.name: file.read_bytes() for file in base.iterdir()}
    pushed = run("push", str(adapter), "me/mine", "--base", "me/base")
    assert pushed.stdout.startswith(f"pushed {hub.url}/me/mine/commit/"), pushed.stderr
    files = hub.repos["me/mine"]
    names = {"README.md", "adapter_config.json", "gem_config.json", ADAPTER_NAME}
    assert set(files) - {".gitattributes"} == names
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert b"base_model: me/base" in files["README.md"]
    program = (
        "import gem_rag, numpy, sys\n"
        "with gem_rag.load('me/mine') as gem:\n"
        f"    numpy.save({str(tmp_path / 'found.npy')!r}, gem.embed_documents({TEXTS}))"
    )
    loaded = run(program=program)
    assert loaded.returncode == 0, loaded.stderr
    with gem_rag.load(adapter) as gem:
        assert np.array_equal(np.load(tmp_path / "found.npy"), gem.embed_documents(TEXTS))


def test_a_model_is_pulled_into_a_folder(hub: Hub, run: Run, adapter: Path, tmp_path: Path) -> None:
    hub.repos["me/mine"] = {
        file.relative_to(adapter).as_posix(): file.read_bytes()
        for file in adapter.rglob("*")
        if file.is_file()
    }
    pulled = run("pull", "me/mine", "--out", str(tmp_path / "pulled"))
    assert pulled.stdout == f"wrote {tmp_path / 'pulled'}\n", pulled.stderr
    found = open_checkpoint(tmp_path / "pulled")
    assert found.fingerprint() == open_checkpoint(adapter).fingerprint()
    again = run("pull", "me/mine", "--out", str(tmp_path / "pulled"))
    assert "exists already" in again.stderr
    missing = run("pull", "me/other")
    assert missing.returncode == 1
    assert missing.stderr.startswith("gem-rag: could not pull me/other (")
    assert missing.stderr.count("\n") == 1


def test_what_others_could_not_load_is_not_pushed(
    adapter: Path, plain_folder: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="which is only on this machine: give the hub's name"):
        push(adapter, "me/mine")
    with pytest.raises(InputError, match="has not been GEM-trained"):
        push(plain_folder("llama"), "me/mine")
    (adapter / "README.md").unlink()
    with pytest.raises(InputError, match=r"has no README.md: write a model card first"):
        push(adapter, "me/mine")
    with pytest.raises(InputError, match="there is no folder"):
        push(tmp_path / "nothing", "me/mine")
