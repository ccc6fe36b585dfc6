"""What runs jobs in the server's worker process: a `Session` behind the queue's `Runner` interface."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from loraloom.custom_nodes.describe import said_of
from loraloom.engine.cache import Cache
from loraloom.engine.events import Event
from loraloom.engine.plan import order
from loraloom.engine.run import output_nodes, run
from loraloom.engine.together import Inside, Start, Told
from loraloom.engine.validation import own_checks
from loraloom.errors import WorkflowError
from loraloom.jobs.job import Request
from loraloom.jobs.messages import problem
from loraloom.models.autoencoder import autoencoder_kinds
from loraloom.models.computing import computing_of
from loraloom.models.encoder import encoder_kinds
from loraloom.models.library_class import import_ahead
from loraloom.models.recognition import families
from loraloom.session import Session
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.graph import JSON, Graph


class SessionRunner:
    """Runs jobs with models that stay warm between them."""

    def __init__(self, session: Session, cache: Cache) -> None:
        self._session, self._cache = session, cache

    def run(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        return self._begun(request, self._checked(request), cancel, torch.inference_mode)

    def run_together(
        self, requests: Sequence[Request], cancels: Sequence[threading.Event], rows: int
    ) -> Iterator[Told]:
        starts: list[Start] = []
        for request, cancel in zip(requests, cancels, strict=True):
            try:
                starts.append(partial(self._begun, request, self._checked(request), cancel))
            except Exception as error:  # noqa: BLE001 - it is the end of this job alone
                starts.append(partial(_failed, error))
        return self._session.together(starts, [cancel.is_set for cancel in cancels], rows)

    def _checked(self, request: Request) -> Graph:
        """The graph of a request. Raises WorkflowError for what its nodes object to."""
        session, graph = self._session, parse_api(dict(request.prompt))
        # Only here is the code of node packs at hand, and with it their own checks.
        needed = order(graph.nodes, output_nodes(graph, session.nodes, request.targets))
        objections = own_checks(graph, session.nodes, needed)
        if objections:
            raise WorkflowError("; ".join(problem.line() for problem in objections))
        return graph

    def _begun(
        self, request: Request, graph: Graph, cancel: threading.Event, inside: Inside
    ) -> Iterator[Event]:
        info = request.extra_data.get("extra_pnginfo")
        extra = cast("dict[str, JSON]", info if isinstance(info, dict) else {})
        session = self._session
        return run(
            graph,
            session.nodes,
            targets=request.targets,
            cache=self._cache,
            services=session.services,
            extra_pnginfo=extra,
            cancel=cancel,
            find_file=session.folders.find,
            inside=inside,
            policy=request.policy,
        )

    def describe(self) -> dict[str, JSON]:
        devices: list[JSON] = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            devices.append(
                {
                    "name": torch.cuda.get_device_name(index),
                    "type": "cuda",
                    "index": index,
                    "vram_total": total,
                    "vram_free": free,
                    "torch_vram_total": total,
                    "torch_vram_free": free,
                }
            )
        return {"torch": torch.__version__, "devices": devices}

    def declared(self) -> JSON:
        packs = self._session.packs
        return said_of(packs) if packs.nodes or packs.failed else None

    def check(self, request: Request) -> list[JSON]:
        graph = parse_api(dict(request.prompt))
        needed = order(graph.nodes, request.targets or graph.nodes)
        return [problem(p) for p in own_checks(graph, self._session.nodes, needed)]

    def free(self, models: bool, results: bool) -> None:
        if results:
            self._cache.clear()
            self._session.services.encodings.clear()
        if models:
            self._session.memory.release()


def _failed(error: Exception, inside: Inside) -> Iterator[Event]:
    raise error


def _classes() -> Iterator[str]:
    """The classes of all networks, those first that the most people use."""
    yield from (family.module.path for family in families())
    yield from (kind.module.path for kind in autoencoder_kinds().values())
    yield from (path for kind in encoder_kinds().values() for path in kind.classes)


def make_runner(settings: Mapping[str, Any]) -> SessionRunner:
    """The runner of `loraloom serve`; the settings are those that the command makes."""
    models, cache = settings["models"], Cache(settings["cache"], settings["cache_size"])
    session = Session(
        None if models is None else [Path(m) for m in models],
        output_dir=settings["output_dir"],
        input_dir=settings["input_dir"],
        extra_model_paths=[Path(p) for p in settings["extra_model_paths"]],
        device=settings["device"],
        dtype=settings["dtype"],
        vram=settings["vram"],
        storage=settings["storage"],
        computing=computing_of(settings["computing"]),
        compat=settings["compat"],
        strict_lora=settings["strict_lora"],
        custom_nodes=[Path(p) for p in settings["custom_nodes"]],
        cache=cache,
        temp_dir=settings["temp_dir"],
    )
    session.services = replace(session.services, training=Path(settings["training_dir"]))
    import_ahead(_classes())
    return SessionRunner(session, cache)
