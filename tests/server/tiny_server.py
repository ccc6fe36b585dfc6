"""A server whose worker runs the tiny nodes of the queue's tests. Arguments: folder, port, options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tests.jobs.tiny_runner import NODES
from tests.server.in_folder import serve_in

from loraloom.engine.validation import ClassChecks
from loraloom.workflow.graph import Graph
from loraloom.workflow.implemented import implemented_schemas
from loraloom.workflow.report import Problem


class ChecksInTheWorker(ClassChecks):
    """As for node packs: the server knows which inputs are checked, the worker has the code."""

    def problems(self, graph: Graph, node_ids: Iterable[str]) -> list[Problem]:
        return []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--paused", action="store_true")
    parser.add_argument("--frontend", action="store_true")
    parser.add_argument("--max-json", type=int, default=16 * 1024 * 1024)
    options = parser.parse_args()
    serve_in(
        options.folder,
        schemas={**implemented_schemas(), **{name: t.schema for name, t in NODES.items()}},
        worker="tests.jobs.tiny_runner:make",
        worker_settings={"output": str(options.folder / "output")},
        settings={
            "port": options.port,
            "token": options.token,
            "frontend": options.frontend,
            "allow_webhooks": frozenset({"127.0.0.1"}),
            "max_json": options.max_json,
        },
        start_paused=options.paused,
        own=ChecksInTheWorker(NODES),
    )
