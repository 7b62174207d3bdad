"""What is said of a model before it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import helpers
import pytest
from families import build_family
from typer.testing import CliRunner

from gem_rag.cli.app import app
from gem_rag.core.suitability import examine


def saved(model: object, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    helpers.build_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_that_can_be_trained_whole(tmp_path: Path) -> None:
    found = examine(saved(build_family("llama"), tmp_path))
    assert found.accepted
    assert (found.dim, found.layers, found.adapters) == (32, 2, 14)
    assert found.longest_text == helpers.CONTEXT - 1
    assert (found.reason, found.without_adapters) == ("", "")


def test_a_model_that_gets_adapters_in_some_layers(tmp_path: Path) -> None:
    found = examine(saved(build_family("opt with a projection"), tmp_path))
    assert (found.accepted, found.dim, found.adapters) == (True, 16, 10)
    assert "fc1 see tokens in another order" in found.without_adapters


@pytest.mark.parametrize(
    ("architecture", "reason"), [("roberta", "decoder-only"), ("bert", "decoder-only")]
)
def test_a_model_that_cannot_be_trained(architecture: str, reason: str, tmp_path: Path) -> None:
    found = examine(saved(helpers.build_model(architecture), tmp_path))
    assert not found.accepted
    assert reason in found.reason


def test_the_command_shows_it(tmp_path: Path) -> None:
    folder = str(saved(build_family("llama"), tmp_path))
    shown = CliRunner().invoke(app, ["info", "--model", folder, "--check"])
    assert shown.exit_code == 0
    assert "accepted: True" in shown.output
    assert "adapters: 14" in shown.output
    as_json = CliRunner().invoke(app, ["info", "--model", folder, "--check", "--json"])
    assert json.loads(as_json.stdout)["suitability"]["accepted"] is True
    plain = CliRunner().invoke(app, ["info", "--model", folder])
    assert "accepted" not in plain.output
