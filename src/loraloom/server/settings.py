"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import InputError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """listen, port: the address. token: what every request must show; None for none.

    user_dir: the queue, the editor's settings and its saved workflows.
    allow_hosts, allow_origins: further values of those headers ("name", "https://name:port") that are ours.
    allow_webhooks: hosts in private networks that webhooks may call; others there are refused.
    frontend: serve ComfyUI's editor at /, where it is installed. max_json, max_upload, max_lora: bytes.
    """

    output_dir: Path
    input_dir: Path
    temp_dir: Path
    user_dir: Path
    listen: str = "127.0.0.1"
    port: int = 8188
    token: str | None = None
    insecure: bool = False
    allow_hosts: frozenset[str] = frozenset()
    allow_origins: frozenset[str] = frozenset()
    allow_webhooks: frozenset[str] = frozenset()
    frontend: bool = True
    max_json: int = 16 * 1024 * 1024
    max_upload: int = 100 * 1024 * 1024
    max_lora: int = 8 * 1024**3
    max_pixels: int = 64_000_000
    max_nodes: int = 10_000
    version: str = ""
    argv: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse to open an address to others without a token. Raises InputError."""
        if self.listen not in LOOPBACK and self.token is None and not self.insecure:
            raise InputError(
                f"--listen {self.listen} lets other machines in; give them a secret with --token SECRET "
                "(or say --insecure if everybody who can reach this address may run jobs and read results)"
            )

    def folder(self, kind: str) -> Path | None:
        """The folder that ComfyUI calls "output", "input" or "temp"."""
        return {"output": self.output_dir, "input": self.input_dir, "temp": self.temp_dir}.get(kind)
