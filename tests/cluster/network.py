"""Network namespaces as machines, joined by virtual cables that can be cut. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

NETWORK = "10.77.0"
HUB = f"{NETWORK}.1"
"""The head's address."""


def can_be_made() -> bool:
    """Whether this process may make namespaces."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"loom-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", name], check=False)
    return made


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def space(group: str, name: str) -> str:
    """A namespace of a network. group: tells networks apart; name: "hub" or a node's."""
    return f"loom-{group}-{name}"


def address(number: int) -> str:
    """The address of a node, counted from 0."""
    return f"{NETWORK}.{11 + number}"


@contextmanager
def network(group: str, nodes: Sequence[str]) -> Generator[None]:
    """A namespace with a bridge for the head, and one for every node, with a cable to it."""
    hub = space(group, "hub")
    try:
        ip("netns", "add", hub)
        ip("-n", hub, "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "address", "add", f"{HUB}/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for number, name in enumerate(nodes):
            own = space(group, name)
            ip("netns", "add", own)
            ip("-n", hub, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "cable", "netns", own)
            ip("-n", hub, "link", "set", f"to-{name}", "master", "bridge", "up")
            ip("-n", own, "address", "add", f"{address(number)}/24", "dev", "cable")
            ip("-n", own, "link", "set", "cable", "up")
            ip("-n", own, "link", "set", "lo", "up")
        yield
    finally:
        for name in ("hub", *nodes):
            command = ["ip", "netns", "delete", space(group, name)]
            subprocess.run(command, check=False, capture_output=True)


def switch(group: str, name: str, on: bool) -> None:
    """Cut a node's cable, or join it again."""
    ip("-n", space(group, "hub"), "link", "set", f"to-{name}", "up" if on else "down")
