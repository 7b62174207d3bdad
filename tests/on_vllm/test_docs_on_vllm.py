"""The guide to vLLM runs on vLLM."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest


def test_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = 'kv_cache_memory_bytes=64 << 20, dtype="float32", enforce_eager=True'
    small = f"max_model_len=512 -> max_model_len=512, {quick}"
    assert pages.run_python(pages.ROOT / "docs" / "guides" / "vllm.md", small=small) == 1
    assert "(1, 256)" in capsys.readouterr().out
