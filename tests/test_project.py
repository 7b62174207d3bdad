"""The repository as a project: versions, metadata, workflows and templates agree."""

from __future__ import annotations

import importlib.util
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml

import gem_rag

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("*/*/pyproject.toml"))]
YAML = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / "CITATION.cff", ROOT / "mkdocs.yml"])
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def check_wheels() -> Any:
    spec = importlib.util.spec_from_file_location(
        "check_wheels", ROOT / "scripts" / "check_wheels.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", PROJECTS, ids=pages.name_of)
def test_the_version_is_in_one_place(file: Path) -> None:
    project = tomllib.loads(file.read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    source = file.parent / project["tool"]["hatch"]["version"]["path"]
    assert source.resolve() == ROOT / "gem_rag" / "__init__.py"
    assert check_wheels().read_version() == gem_rag.__version__


def test_the_changelog_and_the_citation_name_the_version() -> None:
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+), ", log, re.MULTILINE)
    assert newest is not None
    assert newest[1] == gem_rag.__version__
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == gem_rag.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


@pytest.mark.parametrize("file", PROJECTS, ids=pages.name_of)
def test_packages_are_typed(file: Path) -> None:
    wheel = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    [folder] = wheel["wheel"].get("packages") or wheel["wheel"]["include"]
    assert list((file.parent / folder).rglob("py.typed")), folder


@pytest.mark.parametrize("file", PROJECTS, ids=pages.name_of)
def test_each_distribution_has_its_license(file: Path) -> None:
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    assert project["license-files"][0] == "LICENSE"
    assert (file.parent / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for name in project["license-files"]:
        assert (file.parent / name).is_file(), name
    assert (file.parent / project["readme"]).is_file()


@pytest.mark.parametrize("file", YAML, ids=pages.name_of)
def test_yaml_is_valid(file: Path) -> None:
    assert isinstance(read(file), dict)


@pytest.mark.parametrize("file", WORKFLOWS, ids=pages.name_of)
def test_workflows_run_make_targets(file: Path) -> None:
    workflow = read(file)
    assert workflow[True], "when it runs"  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert set(job.get("needs", []) if isinstance(job.get("needs"), list) else ()) <= set(
            workflow["jobs"]
        )
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), name
            for line in step.get("run", "").splitlines():
                for target in job.get("strategy", {}).get("matrix", {}).get("target", ["x"]):
                    pages.check_shell(line.replace("${{ matrix.target }}", target))


def test_only_publishing_may_ask_for_an_identity() -> None:
    release = read(ROOT / ".github" / "workflows" / "release.yml")
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert release["jobs"]["publish"]["environment"] == "pypi"
    assert "permissions" not in release["jobs"]["build"]
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "secrets." not in text


def test_a_tag_of_another_version_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"v9\.9\.9 is not that of version"):
        check_wheels().main(tag="v9.9.9")


def test_what_a_distribution_lacks_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "gem_rag-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gem_rag/py.typed", "")
    assert check_wheels().faults(wheel) == [f"{wheel.name} has no LICENSE"]
    source = tmp_path / "gem_smollm2_135m-0.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        archive.add(wheel, "gem_smollm2_135m-0/LICENSE")
    assert check_wheels().faults(source) == [
        f"{source.name} has no py.typed",
        f"{source.name} has no NOTICE",
    ]
