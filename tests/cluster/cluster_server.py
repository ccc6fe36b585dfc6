"""A server of `picture_runner`'s jobs that is the head of a cluster. Arguments: folder and options."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.cluster.picture_runner import NODES
from tests.server.in_folder import model_folders, serve_in

from loraloom.cli.cluster_head import TOKEN_FILE, needs_of, offer_of, places_of
from loraloom.cluster.head import ClusterSettings, Head
from loraloom.cluster.ray_node import NodeLimits, cluster_token

OBJECT_STORE = 100_000_000

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--cluster", default="auto")
    parser.add_argument("--address", default="127.0.0.2")
    parser.add_argument("--cluster-port", type=int, default=6379)
    parser.add_argument("--cluster-most", type=int, default=0)
    parser.add_argument("--here", type=int, default=0)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--ray-dir", type=Path)
    options = parser.parse_args()
    folder: Path = options.folder
    (folder / "user").mkdir(parents=True, exist_ok=True)
    worker = {f"{kind}_dir": str(folder / kind) for kind in ("output", "temp", "input")}
    factory = "tests.cluster.picture_runner:make"
    schemas = {name: t.schema for name, t in NODES.items()}
    cluster = ClusterSettings(
        address=options.cluster,
        factory=factory,
        worker={**worker, "models": [str(folder / "models")], "device": "cpu"},
        places=places_of(folder / "output", folder / "user"),
        temp=folder / "temp",
        own_address=options.address,
        port=options.cluster_port,
        token=cluster_token(folder / "user" / TOKEN_FILE),
        most=options.cluster_most,
        limits=NodeLimits(OBJECT_STORE, options.ray_dir),
        offer=offer_of(model_folders(folder), lambda: schemas, folder / "user"),
    )
    serve_in(
        folder,
        schemas=schemas,
        worker=factory,
        worker_settings=worker,
        settings={"listen": options.listen, "insecure": True, "port": options.port, "frontend": False},
        devices=["cpu"] * options.here,
        rows=options.rows,
        beside=lambda dispatcher: Head(cluster, dispatcher),
        needs=needs_of(schemas),
        places=places_of(folder / "output", folder / "user"),
    )
