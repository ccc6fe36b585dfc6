"""A server of `picture_runner`'s jobs that is the head of a cluster. Arguments: folder and options."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.cluster.picture_runner import NODES

from loraloom.cli.cluster_head import TOKEN_FILE, needs_of, offer_of, staging_of
from loraloom.cluster.head import ClusterSettings, Head
from loraloom.cluster.ray_node import NodeLimits, cluster_token
from loraloom.folders import ModelFolders
from loraloom.jobs.lock import FolderLock
from loraloom.jobs.notices import Limits
from loraloom.server.app import Setup
from loraloom.server.run import serve
from loraloom.server.settings import ServerSettings

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
    parser.add_argument("--ray-dir", type=Path)
    options = parser.parse_args()
    folder: Path = options.folder
    (folder / "user").mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder / "user")
    lock.acquire(3.0)
    worker = {f"{kind}_dir": str(folder / kind) for kind in ("output", "temp", "input")}
    factory = "tests.cluster.picture_runner:make"
    schemas = {name: t.schema for name, t in NODES.items()}
    folders = ModelFolders([folder / "models"], input_dir=folder / "input")
    cluster = ClusterSettings(
        address=options.cluster,
        factory=factory,
        worker={**worker, "models": [str(folder / "models")], "device": "cpu"},
        output=folder / "output",
        temp=folder / "temp",
        staging=staging_of(folder / "output"),
        own_address=options.address,
        port=options.cluster_port,
        token=cluster_token(folder / "user" / TOKEN_FILE),
        most=options.cluster_most,
        limits=NodeLimits(OBJECT_STORE, options.ray_dir),
        offer=offer_of(folders, lambda: schemas, folder / "user"),
    )
    serve(
        Setup(
            settings=ServerSettings(
                output_dir=folder / "output",
                input_dir=folder / "input",
                temp_dir=folder / "temp",
                user_dir=folder / "user",
                listen=options.listen,
                insecure=True,
                port=options.port,
                frontend=False,
            ),
            folders=folders,
            schemas=schemas,
            worker=factory,
            worker_settings=worker,
            limits=Limits(),
            devices=["cpu"] * options.here,
            beside=lambda dispatcher: Head(cluster, dispatcher),
            needs=needs_of(schemas),
            staging=staging_of(folder / "output"),
        )
    )
