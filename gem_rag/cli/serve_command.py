"""`gem-rag serve` and `gem-rag mcp`: models and indexes for other programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from gem_rag.cli.common import DEFAULT_MODEL, load_model, print_notice, require_extra
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gem_rag.server.catalog import Catalog, IndexFolder
    from gem_rag.server.settings import Settings

_ENGINES = ("auto", "transformers", "vllm")
_RUNNING = {"transformers": 64, "vllm": 512}  # requests at once
_KEYS = "GEM_RAG_API_KEY"
IndexesOption = Annotated[
    list[str] | None,
    typer.Option("--index", help="Folder of an index, or NAME=FOLDER; repeatable."),
]
# No -m: it would swallow vLLM's short flags that contain an m.
ServedModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"Installed model, hub name or folder; default: first index's, or {DEFAULT_MODEL}.",
    ),
]


def serve(
    context: typer.Context,
    model: ServedModelOption = None,
    index: IndexesOption = None,
    engine: Annotated[
        str, typer.Option(help="transformers or vllm; default: vllm if it is installed.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar=_KEYS, help="API key that requests must send; repeatable."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Another host name that the server answers to; repeatable."),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose web pages may call the server; repeatable."),
    ] = None,
    max_body: Annotated[int, typer.Option(help="Maximum size of a request in MiB.", min=1)] = 64,
    max_inputs: Annotated[
        int, typer.Option(help="Maximum texts, documents or files in a request.", min=1)
    ] = 16_384,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens to generate for a request.", min=1)
    ] = None,
    max_running: Annotated[
        int | None,
        typer.Option(help="Maximum concurrent requests; default: 64, with vllm 512.", min=1),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(help="Maximum waiting requests; further ones get status 429.", min=0)
    ] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.", min=1)] = 600,
    shutdown_timeout: Annotated[
        int | None,
        typer.Option(help="Seconds that requests have to finish at shutdown.", min=0),
    ] = None,
    on_failure: Annotated[
        str, typer.Option(help="If the engine dies: exit, restart or stay (transformers).")
    ] = "exit",
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error (transformers).")
    ] = "info",
    embed_share: Annotated[
        float,
        typer.Option(help="Maximum share of time for embeddings while text is generated (vllm)."),
    ] = 0.5,
) -> None:
    """Serve a model and indexes to OpenAI clients, MCP clients and browsers.

    Further options are passed to vLLM: gem-rag serve --model NAME --tensor-parallel-size 2
    """
    from gem_rag._utils.suggestions import check_choice

    check_choice("--engine", engine, _ENGINES)
    check_choice("--on-failure", on_failure, ("exit", "restart", "stay"))
    check_choice("--log-level", log_level, ("debug", "info", "warning", "error"))
    engine = _choose_engine(engine)
    require_extra("serve", "fastapi", "uvicorn", "prometheus_client", "multipart", "mcp")
    from gem_rag.server.settings import Settings, hosts_for, is_loopback

    folders = _folders(index)
    settings = Settings(
        tuple(api_key or ()),
        hosts_for(host, tuple(allowed_host or ())),
        tuple(allowed_origin or ()),
        max_body << 20,
        max_inputs,
        max_tokens,
        max_running or _RUNNING[engine],
        max_waiting,
        timeout,
    )
    if not settings.api_keys and not is_loopback(host):
        print_notice(
            f"warning: whoever reaches {host} may ask, and change the indexes: set {_KEYS}"
        )
    model = model or _model_of(folders)
    if engine == "vllm":
        if on_failure != "exit":
            raise InputError(
                f"--on-failure {on_failure} is for the transformers engine: vLLM's server exits "
                "when its engine dies, and whatever supervises it, as Docker's restart policy "
                "does, starts it again"
            )
        further = list(context.args)
        if shutdown_timeout is not None:
            further += ["--shutdown-timeout", str(shutdown_timeout)]
        _become_vllm(model, folders, settings, host, port, embed_share, further)
        return
    names = _served_names(context.args)
    from gem_rag.server.run import serve as run

    run(
        lambda: _open(model, folders, settings, names),
        host,
        port,
        shutdown_timeout=30 if shutdown_timeout is None else shutdown_timeout,
        on_failure=on_failure,  # type: ignore[arg-type]
        log_level=log_level,
    )


def mcp(model: ServedModelOption = None, index: IndexesOption = None) -> None:
    """Offer indexes to agents over the Model Context Protocol, on stdin and stdout."""
    require_extra("serve", "fastapi", "mcp")
    from gem_rag.server.mcp_server import make_mcp_server
    from gem_rag.server.settings import Settings

    folders = _folders(index)
    if not folders:
        raise InputError("mcp needs an index: gem-rag mcp --index DIR")
    catalog = _open(model or _model_of(folders), folders, Settings())
    make_mcp_server(lambda: catalog).run("stdio")


def _choose_engine(engine: str) -> str:
    from importlib.util import find_spec

    if engine == "auto":
        return "vllm" if find_spec("vllm") else "transformers"
    if engine == "vllm":
        require_extra("vllm", "vllm")
    return engine


def _folders(given: list[str] | None) -> list[IndexFolder]:
    """The indexes that are named, which are there and not of one name."""
    from gem_rag.rag.manifest import Manifest
    from gem_rag.server.catalog import IndexFolder

    folders = [IndexFolder.parse(one) for one in given or ()]
    for folder in folders:
        Manifest.read_existing(folder.folder)
    return folders


def _model_of(folders: list[IndexFolder]) -> str:
    """The first index's model, or the bundled one."""
    from gem_rag.rag.manifest import Manifest

    return Manifest.read_existing(folders[0].folder).model if folders else DEFAULT_MODEL


def _open(
    model: str, folders: list[IndexFolder], settings: Settings, names: Sequence[str] = ()
) -> Catalog:
    from gem_rag.server.catalog import Catalog

    return Catalog.open(load_model(model, "transformers"), folders, settings, names=names)


def _served_names(arguments: list[str]) -> list[str]:
    """What follows vLLM's option --served-model-name; its others are for vLLM alone."""
    first, names = arguments[:1], arguments[1:]
    other = [word for word in names if word.startswith("-")]
    if first != ["--served-model-name"] * len(first):
        other = first
    if other:
        raise InputError(f"there is no option {other[0]}: vLLM's own go with --engine vllm")
    return names


def _become_vllm(
    model: str,
    folders: list[IndexFolder],
    settings: Settings,
    host: str,
    port: int,
    embed_share: float,
    more: list[str],
) -> None:
    """vLLM's server takes this process's place."""
    from gem_rag.core.checkpoint import open_checkpoint
    from gem_rag.server.vllm_command import command, environment

    checkpoint = open_checkpoint(model)
    argv = command(
        checkpoint, host=host, port=port, embed_share=embed_share, folders=folders,
        settings=settings, more=more,
    )  # fmt: skip
    os.execve(argv[0], argv, environment(settings.api_keys))
