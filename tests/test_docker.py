"""The Dockerfile and the compose file name what is there; they are not run here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from gem_rag.cli import app

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


def options_of(command: str) -> set[str]:
    """The options that a command of ours takes."""
    found = get_command(app).commands[command]  # type: ignore[attr-defined]
    return {option for parameter in found.params for option in parameter.opts}


def check_command(words: list[str]) -> None:
    name, *rest = words
    flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert flags <= options_of(name)


def test_instructions_are_of_docker(instructions: list[tuple[str, str]]) -> None:
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE"}
    known |= {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} == known
    for name, arguments in instructions:
        if name in ("VOLUME", "ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(arguments), list)
        if name == "RUN":
            assert shlex.split(arguments)


def test_what_is_copied_is_there_and_not_ignored(instructions: list[tuple[str, str]]) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = {word for name, words in instructions if name == "COPY" for word in words.split()[:-1]}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_it_runs_our_command_as_a_user_of_its_own(instructions: list[tuple[str, str]]) -> None:
    found = dict(instructions)
    assert found["USER"] == "gem"
    assert json.loads(found["ENTRYPOINT"]) == ["gem-rag"]
    check_command(json.loads(found["CMD"]))
    extras = (ROOT / "pyproject.toml").read_text()
    for extra in ("serve", "files", "vllm"):
        assert re.search(rf"^{extra} = \[", extras, re.MULTILINE)


def test_the_services_run_our_commands(compose: dict[str, Any]) -> None:
    services = compose["services"]
    check_command(services["gem-rag"]["command"])
    check_command(services["index"]["command"])
    for service in services.values():
        for volume in service["volumes"]:
            name = volume.split(":")[0]
            assert name.startswith("./") or name in compose["volumes"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    build = services["gem-rag"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"


def test_the_front_end_asks_our_server_with_the_key(compose: dict[str, Any]) -> None:
    server, front = (compose["services"][name] for name in ("gem-rag", "open-webui"))
    asked = front["environment"]
    assert asked["OPENAI_API_BASE_URL"] == "http://gem-rag:8000/v1"
    assert asked["OPENAI_API_KEY"] == server["environment"]["GEM_RAG_API_KEY"]
    assert "--allowed-host=gem-rag" in server["command"]
    assert asked["DEFAULT_MODELS"] == "rag/documents"
