"""`loraloom cluster`: machines that drain the queue of a server on another one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from loraloom.atomic_file import explained, make_folder
from loraloom.cli.cluster_head import checked_address, checked_ip, device_list, require_ray
from loraloom.cli.server_jobs import ServerJobs, TokenOption
from loraloom.cli.settings import CustomNodesOption, ExtraPathsOption, ModelsOption, memory_size
from loraloom.errors import InputError

cluster_app = typer.Typer(
    no_args_is_help=True, help="Let other machines drain a server's queue, and see what they do."
)

_KINDS = (r"cuda(:\d+)?", r"cpu(:\d+)?")
_STORE = 1 << 30
_LEAST_STORE = 76 << 20
"""Ray's own, 75 million bytes, rounded up to what can be written as mebibytes."""


def _size(given: str | int) -> int:
    return given if isinstance(given, int) else memory_size(given)


ServerOption = Annotated[str, typer.Option("--server", metavar="URL", help="The server that has the queue.")]


@cluster_app.command("worker")
def worker_command(
    head: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where Ray's head listens.")],
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A copy of the head's user/cluster.token. Default: $RAY_AUTH_TOKEN, if the head has one."
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            help="One worker on each: cuda:0,cuda:1, or cpu. Default: every GPU, else the processor."
        ),
    ] = None,
    models: ModelsOption = None,
    extra_model_paths: ExtraPathsOption = None,
    custom_nodes: CustomNodesOption = None,
    cache: Annotated[
        Path, typer.Option(help="Where model files that this machine lacks are kept once they have come.")
    ] = Path("cluster-models"),
    address: Annotated[
        str | None, typer.Option(help="This machine's address for the others. Default: the one Ray finds.")
    ] = None,
    object_store: Annotated[
        int, typer.Option(parser=_size, metavar="SIZE", help="Memory for what is being passed on.")
    ] = _STORE,
    ray_dir: Annotated[Path | None, typer.Option(help="Where Ray keeps its logs and sockets.")] = None,
) -> None:
    """Run jobs of another machine's queue here, until stopped. When the head goes away, wait for it."""
    from loraloom.cluster.ray_node import (
        NODE_VARIABLE,
        NodeLimits,
        RayNode,
        cluster_token,
        ray_environment,
        worker_arguments,
    )
    from loraloom.cluster.scratch import sweep

    require_ray()
    checked_address(head)
    if token_file is not None and not token_file.exists():
        raise InputError(f"there is no {token_file}; copy it from the head's user folder")
    token = None if token_file is None else cluster_token(token_file)
    if object_store < _LEAST_STORE:
        raise InputError(f"--object-store {object_store}: Ray needs at least {_LEAST_STORE >> 20}M")
    with explained(cache):
        make_folder(cache)
    chosen = _devices(devices)
    gpus = [d.partition(":")[2] or "0" for d in chosen if d.startswith("cuda")]
    node: dict[str, Any] = {
        "custom_nodes": [str(p.absolute()) for p in custom_nodes or ()],
        "extra_model_paths": [str(p.absolute()) for p in extra_model_paths or ()],
        "cache": str(cache.absolute()),
        "models": None if models is None else [str(p.absolute()) for p in models],
        "device": "auto" if gpus else chosen[0],
    }
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    arguments = worker_arguments(
        head, len(chosen), len(gpus), checked_ip(address), NodeLimits(object_store, ray_dir)
    )
    environment = ray_environment(token, **{NODE_VARIABLE: json.dumps(node), **visible})
    sys.stderr.write(f"{len(chosen)} workers ({', '.join(chosen)}) for {head}\n")
    try:
        _until_stopped(RayNode(arguments, environment, sys.stderr.write, head=head))
    finally:
        sweep()


@cluster_app.command("status")
def status_command(
    server: ServerOption = "http://127.0.0.1:8188",
    token: TokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show the machines and workers of a server, what each runs and has loaded, and how fast it is."""
    found = ServerJobs(server, token).ask("/v1/workers")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from loraloom.cli.console import open_console

    console = open_console()
    table = Table("worker", "state", "jobs/min", "runs", "loaded", box=None)
    for worker in found["workers"]:
        loaded = ", ".join([*worker["models"], *(f"+ {name}" for name in worker["loras"])])
        state = worker["error"] or worker["status"]
        several = f"{len(worker['jobs'])} jobs: " if len(worker["jobs"]) > 1 else ""
        cells = (worker["name"], state, f"{worker['per_minute']:g}", several + worker["doing"], loaded)
        table.add_row(*map(escape, cells))
    console.print(table)
    console.print(f"{len(found['nodes'])} other machines, {found['per_minute']:g} jobs a minute")
    if found["error"]:
        console.print(found["error"], markup=False)
    elif not found["nodes"]:
        console.print(
            "others join a server that was started with --cluster: loraloom cluster worker HOST:PORT"
        )


@cluster_app.command("drain")
def drain_command(
    name: Annotated[str, typer.Argument(help="A worker, or a node: what stands before the slash.")],
    server: ServerOption = "http://127.0.0.1:8188",
    token: TokenOption = None,
    undo: Annotated[bool, typer.Option("--undo", help="Give it jobs again.")] = False,
) -> None:
    """Give a worker or a node no further jobs, so that it can be stopped; what runs there goes on."""
    path = f"/v1/workers/drain?name={quote(name)}&draining={str(not undo).lower()}"
    ServerJobs(server, token).ask(path, {})


def _devices(asked: str | None) -> list[str]:
    if asked is not None:
        named = device_list(asked)
        if not named or not any(all(re.fullmatch(kind, one) for one in named) for kind in _KINDS):
            raise InputError(f"--devices {asked}: expected GPUs such as cuda:0,cuda:1, or cpu")
        return named
    # In a process of its own, which does not keep the memory that torch takes.
    code = "import torch; print(torch.cuda.device_count())"
    count = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return [f"cuda:{i}" for i in range(int(count.stdout.strip() or 0))] or ["cpu"]


def _until_stopped(node: Any) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(node.keep())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        await asyncio.gather(task, return_exceptions=True)

    if os.name == "nt":
        raise InputError("Ray's nodes on Windows are experimental; use WSL")
    asyncio.run(run())
