"""`gem-rag serve` starts vLLM's own server with the right flags and variables, or says why not."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gem_rag import cli
from gem_rag.assets import GEM_TINY
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.config import GemConfig
from gem_rag.engines.vllm.engine_args import LOOP_BREAKER, WORKER_EXTENSION
from gem_rag.errors import InputError
from gem_rag.server import vllm_command as serve
from gem_rag.server import vllm_plugin as plugin
from gem_rag.server.catalog import IndexFolder
from gem_rag.server.settings import Settings

CHECKPOINT = Checkpoint("owner/name", Path("/models/name"), GemConfig())
SERVER = "vllm.entrypoints.openai.api_server"


def line(*more: str, embed_share: float = 0.5) -> list[str]:
    return serve.command(
        CHECKPOINT, host="0.0.0.0", port=81, embed_share=embed_share, more=list(more)
    )


def value(command: list[str], flag: str) -> str:
    """What follows a flag that is there once."""
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


# -- the command line --------------------------------------------------------------------------


def test_the_server_runs_in_this_python() -> None:
    assert line()[:3] == [sys.executable, "-m", SERVER]


def test_the_server_gets_the_model_and_what_embeds() -> None:
    command = line(embed_share=0.25)
    assert value(command, "--model") == str(CHECKPOINT.path)
    assert value(command, "--served-model-name") == "owner/name"
    assert value(command, "--worker-extension-cls") == WORKER_EXTENSION
    assert value(command, "--host") == "0.0.0.0"
    assert value(command, "--port") == "81"
    assert json.loads(value(command, "--additional-config"))["gem_rag"]["embed_share"] == 0.25


def test_what_is_in_the_command_is_what_the_plugin_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [IndexFolder("docs", Path("/indexes/docs"))]
    settings = Settings(("secret", "other"), ("name",), ("https://page",), max_tokens=7)
    command = serve.command(
        CHECKPOINT, host="::", port=81, embed_share=1, folders=folders, settings=settings
    )
    assert "secret" not in " ".join(command)
    assert json.loads(value(command, "--allowed-origins")) == ["https://page"]
    monkeypatch.setenv(plugin.KEYS, serve.environment(settings.api_keys)[plugin.KEYS])
    written = json.loads(value(command, "--additional-config"))
    assert plugin._settings(written) == (1, folders, settings)


def test_grammars_are_those_of_the_library_unless_it_is_said_otherwise() -> None:
    assert json.loads(value(line(), "--structured-outputs-config")) == {"backend": "guidance"}
    assert value(line(), "--logits-processors") == LOOP_BREAKER
    assert "--logits-processors" not in line("--speculative-config", "{}")
    given = line("--structured-outputs-config.backend", "xgrammar")
    assert "--structured-outputs-config" not in given


def test_further_flags_are_handed_on_in_order() -> None:
    more = ["--max-model-len", "64", "--enforce-eager", "-tp", "2", "--seed=3"]
    assert line(*more) == [*line(), *more]


def test_the_served_name_may_be_chosen() -> None:
    assert value(line("--served-model-name", "mine", "other"), "--served-model-name") == "mine"


@pytest.mark.parametrize("flag", ["--api-server-count", "-asc", "--api_server_count"])
def test_more_api_servers_are_refused_since_vllm_would_start_one(flag: str) -> None:
    with pytest.raises(InputError, match="runs one API server"):
        line(flag, "2")


@pytest.mark.parametrize(
    "flag", ["--model", "--worker-extension-cls", "--additional-config", "--allowed-origins"]
)
def test_flags_that_gem_rag_sets_are_refused(flag: str) -> None:
    for more in ([flag, "x"], [f"{flag}=x"]):
        with pytest.raises(InputError, match=f"^{flag}(=x)? is set by gem-rag serve: leave it out"):
            line("--seed", "3", *more)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="embed_share must be above 0 and at most 1"):
        line(embed_share=share)


# -- the variables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [
        ("", "gem_rag"),
        ("other", "gem_rag,other"),
        ("other,,another", "another,gem_rag,other"),
        ("other,gem_rag", "gem_rag,other"),
    ],
)
def test_the_plugin_is_allowed_beside_those_that_are(
    monkeypatch: pytest.MonkeyPatch, allowed: str, wanted: str
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", allowed)
    assert serve.environment()["VLLM_PLUGINS"] == wanted


def test_plugins_that_are_loaded_unasked_stay_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "vllm.general_plugins": ["lora", "gem_rag"],
        "vllm.platform_plugins": ["npu"],
        "vllm.io_processor_plugins": ["images"],
        "vllm.stat_logger_plugins": ["logger"],
        "vllm.endpoint_plugins": ["never_unasked"],
    }

    def entry_points(group: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in installed.get(group, ())]

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(serve, "entry_points", entry_points)
    assert serve.environment()["VLLM_PLUGINS"] == "gem_rag,images,logger,lora,npu"


def test_other_variables_are_handed_on_and_ours_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setenv("GEM_RAG_TEST_VARIABLE", "kept")
    before = dict(os.environ)
    assert serve.environment() == {**before, "VLLM_PLUGINS": "gem_rag,other"}
    assert dict(os.environ) == before


# -- the plugin that the variables allow -------------------------------------------------------


@pytest.fixture
def engine_args(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for vLLM's `EngineArgs`."""

    class EngineArgs:
        worker_extension_cls = ""
        model, revision = "nobody/nothing", None
        served_model_name: str | None = None

        def create_engine_config(self, usage: str, *, headless: bool) -> tuple[str, str, bool]:
            return self.worker_extension_cls, usage, headless

    module = SimpleNamespace(EngineArgs=EngineArgs)
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", module)  # type: ignore[arg-type]
    return EngineArgs


@pytest.mark.parametrize("allowed", [None, "", "other", "gem_rag_too"])
def test_registering_unasked_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, engine_args: Any, allowed: str | None
) -> None:
    if allowed is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    before = engine_args.create_engine_config
    plugin.register()
    assert engine_args.create_engine_config is before


def test_registering_gives_engines_the_extension(
    monkeypatch: pytest.MonkeyPatch, engine_args: Any
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other,gem_rag")
    plugin.register()
    once = engine_args.create_engine_config
    plugin.register()
    assert engine_args.create_engine_config is once
    arguments = engine_args()
    assert arguments.create_engine_config("llm", headless=True) == (WORKER_EXTENSION, "llm", True)
    arguments.worker_extension_cls = "somebody.Else"
    assert arguments.create_engine_config("llm", headless=False)[0] == "somebody.Else"
    assert (arguments.model, arguments.served_model_name) == ("nobody/nothing", None)
    arguments.model = "gem-tiny"  # an installed model's name, which vLLM does not know
    arguments.create_engine_config("llm", headless=True)
    found = arguments.model, arguments.served_model_name
    assert found == (str(GEM_TINY.folder), "gem-tiny")


@pytest.mark.parametrize("additional", [None, {}, {"gem_rag": None}, {"other": {"x": 1}}, object()])
def test_settings_may_be_left_out(additional: Any) -> None:
    assert plugin._settings(additional) == (0.5, [], Settings(max_running=512))


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InputError, match="unknown key 'embed_shares' .did you mean 'embed_share'"):
        plugin._settings({"gem_rag": {"embed_shares": 0.5}})
    with pytest.raises(InputError, match="settings has an unknown key 'max_token'"):
        plugin._settings({"gem_rag": {"settings": {"max_token": 5}}})


# -- gem-rag serve -----------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], Mapping[str, str]]]:
    """What would have taken this process's place, where vLLM is installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: object() if name == "vllm" else find(name, *rest),
    )
    calls: list[tuple[str, list[str], Mapping[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def run(started: Any, capsys: Any) -> Iterator[Any]:
    """Run `gem-rag serve` in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["serve", *arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    with warnings.catch_warnings():
        yield call


def test_serve_becomes_vllms_server(
    run: Any, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    arguments = ("--model", "gem-tiny", "--port", "1234", "--max-model-len", "64")
    arguments += ("--shutdown-timeout", "9")
    assert run(*arguments) == (0, "", "")
    [(program, command, variables)] = started
    assert program == command[0] == sys.executable
    assert command[1:3] == ["-m", SERVER]
    assert value(command, "--model") == str(GEM_TINY.folder)
    assert value(command, "--served-model-name") == "gem-tiny"
    assert value(command, "--host") == "127.0.0.1"
    assert value(command, "--port") == "1234"
    assert json.loads(value(command, "--additional-config"))["gem_rag"]["embed_share"] == 0.5
    assert command[-4:] == ["--max-model-len", "64", "--shutdown-timeout", "9"]
    assert variables == {**os.environ, "VLLM_PLUGINS": "gem_rag,other"}


def test_serve_has_a_model_and_an_address_of_its_own(run: Any, started: Any) -> None:
    code, out, err = run("--host", "0.0.0.0", "--embed-share", "0.1", "--enforce-eager")
    assert (code, out) == (0, "")
    assert err == (
        "gem-rag: warning: whoever reaches 0.0.0.0 may ask, and change the indexes: set "
        "GEM_RAG_API_KEY\n"
    )
    [(_, command, _)] = started
    assert value(command, "--served-model-name") == "gem-tiny"
    assert (value(command, "--host"), value(command, "--port")) == ("0.0.0.0", "8000")
    assert json.loads(value(command, "--additional-config"))["gem_rag"]["embed_share"] == 0.1
    assert command[-1] == "--enforce-eager"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "nonsense"], "--engine must be one of auto, transformers, vllm"),
        (["--model", "./no/model"], "there is no model folder './no/model'"),
        (["--embed-share", "0"], "embed_share must be above 0 and at most 1, not 0.0"),
        (["--index", "./no/index"], "there is no index in"),
        (["--index", "a b=./no"], "'a b' cannot be an index's name"),
        (["--api-key", "a b"], "an API key is made of"),
        (["--engine", "transformers", "--enforce-eager"], "there is no option --enforce-eager"),
        (["--port", "many"], "Invalid value for '--port'"),
        (["--additional-config", "{}"], "--additional-config is set by gem-rag serve"),
        (["--on-failure", "restart"], "restart is for the transformers engine"),
        (["--worker-extension-cls=x"], "--worker-extension-cls is set by gem-rag serve"),
    ],
)
def test_wrong_use_is_one_line_and_code_two(
    run: Any, started: Any, arguments: list[str], said: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out, started) == (2, "", [])
    assert said in err
    assert err.startswith("gem-rag: ")
    assert err.count("\n") == 1


def test_serve_on_vllm_needs_it(run: Any, started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run("--engine", "vllm")
    assert (code, started) == (2, [])
    assert err == "gem-rag: this needs vllm: pip install 'gem-rag[vllm]'\n"
