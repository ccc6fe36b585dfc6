"""`loraloom serve`: the server that ComfyUI's editor and clients can use."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loraloom import __version__
from loraloom.cli import cluster_head
from loraloom.cli.device_check import check_devices
from loraloom.cli.settings import (
    AttentionOption,
    BatchOption,
    CompatOption,
    CompileOption,
    CustomNodesOption,
    DeviceOption,
    DtypeOption,
    ExtraPathsOption,
    FastOption,
    ModelsOption,
    NarrowOption,
    StorageOption,
    StrictLoraOption,
    VramOption,
    computing,
    rows_at_once,
)
from loraloom.errors import InputError
from loraloom.folders import model_folders
from loraloom.workflow.implemented import implemented_schemas

if TYPE_CHECKING:
    from loraloom.workflow.graph import JSON
    from loraloom.workflow.schema import NodeSchema
    from loraloom.workflow.validate import OwnChecks

_LOCK_WAIT_SECONDS = 3.0


def serve_command(
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8188,
    models: ModelsOption = None,
    extra_model_paths: ExtraPathsOption = None,
    custom_nodes: CustomNodesOption = None,
    output_dir: Annotated[Path, typer.Option(help="Where pictures are written.")] = Path("output"),
    input_dir: Annotated[Path, typer.Option(help="Where uploads go and LoadImage looks.")] = Path("input"),
    user_dir: Annotated[
        Path, typer.Option(help="The queue, settings, saved workflows and temporary pictures.")
    ] = Path("user"),
    token: Annotated[
        str | None, typer.Option(envvar="LORALOOM_TOKEN", help="A secret that every client must show.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let others in without a token.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name under which we are reached.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin (https://name:port) whose pages may call us.")
    ] = None,
    allow_webhook: Annotated[
        list[str] | None, typer.Option(help="Host in a private network that webhooks may call.")
    ] = None,
    start_paused: Annotated[bool, typer.Option("--start-paused", help="Start no job until told to.")] = False,
    new_queue: Annotated[
        bool, typer.Option("--new-queue", help="Keep the queue's file under another name; begin with none.")
    ] = False,
    job_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without progress after which a job's worker is ended.")
    ] = 1800.0,
    max_history: Annotated[int, typer.Option(min=1, help="Finished jobs to remember.")] = 10_000,
    max_queue: Annotated[int, typer.Option(min=1, help="Jobs that may wait.")] = 10_000,
    preview_method: Annotated[
        Literal["none", "auto", "latent2rgb", "taesd"],
        typer.Option(help="Pictures of unfinished work, for clients that leave the choice to the server."),
    ] = "none",
    batch: BatchOption = "auto",
    cache: Annotated[
        Literal["classic", "lru", "none"],
        typer.Option(
            help="Results that are kept for later jobs: those of the latest job, those used last, none."
        ),
    ] = "classic",
    cache_size: Annotated[int, typer.Option(min=1, help="Results that `--cache lru` keeps.")] = 100,
    frontend: Annotated[
        bool, typer.Option("--frontend/--no-frontend", help="Serve ComfyUI's editor, if installed.")
    ] = True,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    vram: VramOption = None,
    storage: StorageOption = "native",
    attention: AttentionOption = "auto",
    narrow_weights: NarrowOption = False,
    compiled: CompileOption = False,
    fast: FastOption = None,
    compat: CompatOption = "trainer",
    strict_lora: StrictLoraOption = False,
    devices: Annotated[
        str | None,
        typer.Option(help="One worker on each: cuda:0,cuda:1. none: only those of the cluster."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            help="Let machines of a Ray cluster drain the queue too. auto starts its head here.",
        ),
    ] = None,
    cluster_address: Annotated[
        str | None,
        typer.Option(help="This machine's address for the others. Default: the one Ray finds."),
    ] = None,
    cluster_port: Annotated[int, typer.Option(min=1, max=65535, help="Where Ray's head listens.")] = 6379,
    cluster_most: Annotated[
        int, typer.Option(min=0, help="How many workers Ray's autoscaler may bring; 0: it is not asked.")
    ] = 0,
) -> None:
    """Serve ComfyUI's HTTP interface, with a queue that survives crashes."""
    from loraloom.jobs.database import move_aside
    from loraloom.jobs.lock import FolderLock
    from loraloom.jobs.notices import Limits
    from loraloom.server.app import Setup, queue_file
    from loraloom.server.run import serve
    from loraloom.server.settings import ServerSettings

    rows = rows_at_once(batch)
    if token is not None and len(token) < 8:
        raise InputError(f"the token (--token, $LORALOOM_TOKEN) has {len(token)} characters; 8 are needed")
    settings = ServerSettings(
        output_dir=output_dir.absolute(),
        input_dir=input_dir.absolute(),
        temp_dir=user_dir.absolute() / "temp",
        user_dir=user_dir.absolute(),
        listen=listen,
        port=port,
        token=token,
        insecure=insecure,
        allow_hosts=frozenset(h.lower() for h in allow_host or ()),
        allow_origins=frozenset(allow_origin or ()),
        allow_webhooks=frozenset(h.lower() for h in allow_webhook or ()),
        frontend=frontend,
        version=__version__,
        argv=("loraloom", "serve"),
    )
    settings.check()
    if insecure and token is None:
        sys.stderr.write(f"WARNING: everybody who can reach {listen}:{port} may run jobs and read results.\n")
    here = cluster_head.device_list(devices)
    chosen = computing(attention, narrow_weights, compiled, fast)
    check_devices([device] if here is None else here, dtype, chosen)
    worker_settings: dict[str, JSON] = {
        "models": None if models is None else [str(m.absolute()) for m in models],
        "custom_nodes": [str(d.absolute()) for d in custom_nodes or ()],
        "extra_model_paths": [str(p.absolute()) for p in extra_model_paths or ()],
        "output_dir": str(settings.output_dir),
        "input_dir": str(settings.input_dir),
        "temp_dir": str(settings.temp_dir),
        "training_dir": str(settings.user_dir / "training-jobs"),
        "device": device,
        "dtype": dtype,
        "vram": vram,
        "storage": storage,
        "computing": asdict(chosen),
        "compat": compat,
        "strict_lora": strict_lora,
        "cache": cache,
        "cache_size": cache_size,
    }
    limits = Limits(stall=job_timeout)
    factory = "loraloom.cli.worker:make_runner"
    asked = None
    if cluster is not None:
        asked = cluster_head.ClusterOptions(cluster, cluster_address, cluster_port, cluster_most).checked()
    elif cluster_address is not None or cluster_most:
        raise InputError("--cluster-address and --cluster-most are for a cluster; add --cluster auto")
    several = cluster is not None or (here is not None and len(here) > 1)
    lock = FolderLock(settings.user_dir)
    lock.acquire(_LOCK_WAIT_SECONDS)
    if new_queue and (former := move_aside(queue_file(settings.user_dir))) is not None:
        sys.stderr.write(f"the former queue is kept as {former}\n")
    packs = _Packs(custom_nodes, settings.user_dir) if custom_nodes else None
    kept = None if packs is None else packs.kept
    schemas = with_ours({} if kept is None else kept.schemas)
    folders = model_folders(models, extra_model_paths, settings.input_dir)
    beside = None
    if asked is not None:
        offer = cluster_head.offer_of(folders, lambda: schemas, settings.user_dir)
        beside = cluster_head.beside(asked, settings, factory, worker_settings, limits, offer)
    setup = Setup(
        settings=settings,
        folders=folders,
        schemas=schemas,
        own=kept,
        learn=None if packs is None else packs.learn,
        awaits_classes=packs is not None and kept is None,
        worker=factory,
        worker_settings=worker_settings,
        limits=limits,
        devices=here,
        beside=beside,
        needs=cluster_head.needs_of(schemas) if several else None,
        places=cluster_head.places_of(settings.output_dir, settings.user_dir),
        start_paused=start_paused,
        previews=preview_method,
        rows=rows,
        max_pending=max_queue,
        max_finished=max_history,
        text_types=_text_types,
    )
    try:
        serve(setup)
    finally:
        lock.release()


def _text_types() -> frozenset[str]:
    """The types of text encoders that a family here has: what a template must not go beyond."""
    from loraloom.models.text.recipes import known_recipes

    return frozenset(name for recipe in known_recipes().values() for name in recipe.types)


class _Packs:
    """The classes of node packs: those that were kept from last time, then those that the worker says."""

    def __init__(self, directories: list[Path], user_dir: Path) -> None:
        from loraloom.custom_nodes.describe import Kept

        for directory in directories:
            if not directory.is_dir():
                raise InputError(f"{directory} is not a folder; expected one that holds node packs")
        self._file = Kept(user_dir / "node_packs.json", directories, __version__)
        self.kept = self._file.read()

    def learn(self, said: JSON) -> tuple[Mapping[str, NodeSchema], OwnChecks]:
        """What the worker says that it has loaded."""
        from loraloom.custom_nodes.describe import read

        found = read(said)
        self._file.write(said)
        for failure in found.failed:
            sys.stderr.write(f"warning: {failure}\n")
        return with_ours(found.schemas), found


def with_ours(schemas: Mapping[str, NodeSchema]) -> Mapping[str, NodeSchema]:
    return {**schemas, **implemented_schemas()}
