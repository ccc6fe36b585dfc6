"""Jobs for a server's queue, from the command line."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraloom.errors import InputError, LoraloomError
from loraloom.workflow.graph import Graph

if TYPE_CHECKING:
    import threading

    from PIL.Image import Image

PATIENCE_SECONDS = 300.0
"""How long a server may be away, or its queue full, before it is given up."""
_POLL_SECONDS = 0.5

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Let a server's workers do it, such as http://127.0.0.1:8188."
    ),
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="LORALOOM_TOKEN", help="The secret that the server asks for.")
]


@dataclass(frozen=True, slots=True)
class ServerJobs:
    """A server that runs graphs. token: the secret that it asks for."""

    url: str
    token: str | None = None

    def drawn(
        self, graphs: Iterable[Graph], cancel: threading.Event
    ) -> Iterator[tuple[dict[str, Any], list[Image]]]:
        """The jobs of graphs and their pictures, in order. All are queued at once, so that as many run at a
        time as there are workers; those that are not waited for any more are cancelled.

        Raises InputError for what the server refuses, LoraloomError for a job that did not succeed."""
        jobs: list[str] = []
        ended = 0
        try:
            jobs.extend(
                str(self._asked("/v1/jobs", cancel, {"workflow": graph.to_api()})["id"]) for graph in graphs
            )
            for job_id in jobs:
                job = self._ended(job_id, cancel)
                ended += 1
                yield job, [self._picture(file["url"], cancel) for file in _pictures(job)]
        finally:
            for job_id in jobs[ended:]:
                with suppress(LoraloomError, OSError):
                    self._once(f"/v1/jobs/{job_id}/cancel", {})

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to one request, as JSON. Raises InputError."""
        try:
            return json.loads(self._once(path, body))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.url} does not answer ({error}); name the server with --server"
            ) from error

    def _ended(self, job_id: str, cancel: threading.Event) -> dict[str, Any]:
        while (job := self._asked(f"/v1/jobs/{job_id}", cancel))["status"] in ("pending", "running"):
            cancel.wait(_POLL_SECONDS)
        if job["status"] != "completed":
            said = (job.get("error") or {}).get("message") or "no reason is known"
            raise LoraloomError(f"job {job_id} is {job['status']}: {said}")
        return job

    def _picture(self, path: str, cancel: threading.Event) -> Image:
        from PIL import Image

        with Image.open(io.BytesIO(self._patient(path, cancel))) as picture:
            picture.load()
            return picture.copy()

    def _asked(self, path: str, cancel: threading.Event, body: Mapping[str, Any] | None = None) -> Any:
        return json.loads(self._patient(path, cancel, body))

    def _patient(self, path: str, cancel: threading.Event, body: Mapping[str, Any] | None = None) -> bytes:
        """An answer, also of a server that starts anew or whose queue is full for a while."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._once(path, body)
            except (OSError, _Later) as error:
                if cancel.is_set() or time.monotonic() > until:
                    raise InputError(
                        f"{self.url} does not answer ({error}); is the server running?"
                    ) from error
            cancel.wait(_POLL_SECONDS)

    def _once(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            if error.code in (429, 503):
                raise _Later(said) from error
            raise InputError(f"{self.url} refuses ({error.code}): {said}") from error
        except ValueError as error:
            raise InputError(f"{self.url!r} is no address of a server; expected http://HOST:PORT") from error


class _Later(Exception):
    """The server cannot do it at the moment."""


def _pictures(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    suffixes = (".png", ".jpg", ".jpeg", ".webp")
    return [f for f in job["outputs"] if f["type"] == "output" and f["filename"].lower().endswith(suffixes)]
