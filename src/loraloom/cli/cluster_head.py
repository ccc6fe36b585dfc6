"""What `loraloom serve` is told of a cluster, as what the server needs of it."""

from __future__ import annotations

import hashlib
import importlib.util
import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.errors import InputError

if TYPE_CHECKING:
    from loraloom.cluster.head import Head
    from loraloom.cluster.shared_files import Offer
    from loraloom.folders import ModelFolders
    from loraloom.jobs.dispatcher import Dispatcher
    from loraloom.jobs.job import Request
    from loraloom.jobs.notices import Limits
    from loraloom.jobs.placement import Needs
    from loraloom.jobs.publishing import Places
    from loraloom.server.settings import ServerSettings
    from loraloom.workflow.graph import JSON
    from loraloom.workflow.schema import NodeSchema

STAGING = ".incoming"
TOKEN_FILE = "cluster.token"


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """cluster: auto or HOST:PORT; most: workers that Ray's autoscaler may bring."""

    cluster: str
    own_address: str | None
    port: int
    most: int

    def checked(self) -> ClusterOptions:
        """These options. Raises InputError where they cannot be meant, or Ray is not installed."""
        require_ray()
        if self.cluster != "auto":
            checked_address(self.cluster)
        checked_ip(self.own_address)
        return self


def require_ray() -> None:
    """Raises InputError where the extra is not installed."""
    if importlib.util.find_spec("ray") is None:
        from loraloom.cli.doctor.packages import install

        raise InputError(f"a cluster needs Ray, which is not installed: {install('cluster')}")


def checked_address(text: str) -> str:
    """An address of Ray, HOST:PORT. Raises InputError for what is none."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"{text!r} is no address of a Ray cluster; expected HOST:PORT, such as 10.0.0.5:6379"
        )
    return text


def checked_ip(text: str | None) -> str | None:
    """An address of this machine for others. Raises InputError for what is none."""
    if text is None:
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise InputError(
            f"{text!r} is no IP address; expected one of this machine's, such as 10.0.0.5"
        ) from error


def device_list(text: str | None) -> list[str] | None:
    """ "cuda:0,cuda:1" → its devices; "none" → none; None: one worker on the device of --device."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",")]
    if names == ["none"]:
        return []
    if not all(names) or len({*names}) < len(names):
        raise InputError(f"--devices {text!r}: expected different devices such as cuda:0,cuda:1, or none")
    return names


def needs_of(schemas: Mapping[str, NodeSchema]) -> Callable[[Request], Needs]:
    """What jobs load, by the folders of the inputs of node classes."""
    from loraloom.jobs.placement import Needs
    from loraloom.workflow.needed_files import needed_files

    def needs(request: Request) -> Needs:
        files = needed_files(request.prompt, schemas)
        return Needs(
            frozenset(f.name for f in files if f.is_model), tuple(f.name for f in files if f.is_added)
        )

    return needs


def beside(
    options: ClusterOptions,
    server: ServerSettings,
    factory: str,
    worker: Mapping[str, JSON],
    limits: Limits,
    offer: Offer,
) -> Callable[[Dispatcher], Head]:
    """What makes the head of a cluster beside a server's queue. Raises InputError."""
    from loraloom.cluster.head import AUTO, ClusterSettings, Head
    from loraloom.cluster.ray_node import cluster_token

    own_ray = options.cluster == AUTO
    settings = ClusterSettings(
        address=options.cluster,
        factory=factory,
        worker={**worker, "device": "cpu" if worker["device"] == "cpu" else "auto"},
        places=places_of(server.output_dir, server.user_dir),
        temp=server.temp_dir,
        own_address=options.own_address,
        port=options.port,
        token=cluster_token(server.user_dir / TOKEN_FILE) if own_ray else None,
        most=options.most,
        offer=offer,
    )
    return lambda dispatcher: Head(settings, dispatcher, limits)


def offer_of(folders: ModelFolders, schemas: Callable[[], Mapping[str, NodeSchema]], user_dir: Path) -> Offer:
    """The files of this machine that other machines may fetch."""
    from loraloom.cluster.digests import Digests
    from loraloom.cluster.shared_files import Offer

    return Offer(folders, schemas, Digests(user_dir / "digests.json"))


def places_of(output: Path, user_dir: Path) -> Places:
    """For files of other machines. Until they get their names they lie on the disk where they will stay, and
    those of other servers that share the folder of results elsewhere."""
    from loraloom.jobs.publishing import Places

    own = hashlib.sha256(os.fsencode(user_dir.absolute())).hexdigest()[:8]
    return Places(output / f"{STAGING}-{own}", output)
