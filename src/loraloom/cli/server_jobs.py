"""Jobs for a server's queue, from the command line."""

from __future__ import annotations

import http.client
import io
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraloom.errors import Cancelled, InputError, LoraloomError
from loraloom.workflow.graph import JSON, Graph

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

    @classmethod
    def reached(cls, url: str, token: str | None = None) -> ServerJobs:
        """A server that answers now; one that goes away later is waited for. Raises InputError."""
        server = cls(url, token)
        try:
            server._once("/v1/queue")
        except OSError as error:
            raise server._silent(error) from error
        except _Later:
            pass
        return server

    def drawn(
        self, graphs: Iterable[Graph], cancel: threading.Event
    ) -> Iterator[tuple[dict[str, Any], list[Image]]]:
        """The jobs of graphs and their pictures, in order.

        Raises InputError for what the server refuses, LoraloomError for a job that did not succeed."""
        for job in self.ended((graph.to_api() for graph in graphs), cancel):
            expect_completed(job)
            yield job, [self._picture(file["url"], cancel) for file in _pictures(job)]

    def ended(
        self, workflows: Iterable[Mapping[str, JSON]], cancel: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """The jobs of workflows in API format, in order, each once it has ended, however. All are queued at
        once, so that as many run at a time as there are workers; those that are not waited for any more are
        cancelled.

        Raises InputError for what the server refuses, Cancelled."""
        jobs: list[str] = []
        ended = 0
        try:
            for workflow in workflows:
                jobs.append(str(uuid.uuid4()))
                self._queue(jobs[-1], workflow, cancel)
            for job_id in jobs:
                job = self._ended(job_id, cancel)
                ended += 1
                yield job
        finally:
            for job_id in jobs[ended:]:
                with suppress(LoraloomError, OSError, _Later):
                    self._once(f"/v1/jobs/{job_id}/cancel", {})

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to one request, as JSON. Raises InputError."""
        try:
            return json.loads(self._once(path, body))
        except (OSError, ValueError, _Later) as error:
            raise self._silent(error) from error

    def _queue(self, job_id: str, workflow: Mapping[str, JSON], cancel: threading.Event) -> None:
        """Queue a job under an id of ours: where the answer is lost, asking again does not queue it twice."""
        body = {"workflow": workflow, "id": job_id}
        try:
            self.fetched("/v1/jobs", cancel, body)
        except _Exists:
            return

    def _ended(self, job_id: str, cancel: threading.Event) -> dict[str, Any]:
        while (job := self.asked(f"/v1/jobs/{job_id}", cancel))["status"] in ("pending", "running"):
            if cancel.wait(_POLL_SECONDS):
                raise Cancelled("stopped; what the server had not done yet is cancelled")
        return job

    def _picture(self, path: str, cancel: threading.Event) -> Image:
        from PIL import Image

        with Image.open(io.BytesIO(self.fetched(path, cancel))) as picture:
            picture.load()
            return picture.copy()

    def asked(self, path: str, cancel: threading.Event, body: Mapping[str, Any] | None = None) -> Any:
        """An answer as JSON, waited for as in `fetched`."""
        return json.loads(self.fetched(path, cancel, body))

    def fetched(
        self, path: str, cancel: threading.Event, body: Mapping[str, Any] | bytes | None = None
    ) -> bytes:
        """An answer, also of a server that starts anew or whose queue is full for a while. body: JSON for
        POST, bytes for PUT."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._once(path, body)
            except (OSError, _Later) as error:
                if cancel.is_set() or time.monotonic() > until:
                    raise self._silent(error) from error
            cancel.wait(_POLL_SECONDS)

    def _silent(self, error: Exception) -> InputError:
        return InputError(
            f"{self.url} does not answer ({error}); is the server running, and is this its --server address?"
        )

    def _once(self, path: str, body: Mapping[str, Any] | bytes | None = None) -> bytes:
        is_file = isinstance(body, bytes)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/octet-stream" if is_file else "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        if not self.url.lower().startswith(("http://", "https://")):
            raise InputError(f"{self.url!r} is no address of a server; expected http://HOST:PORT")
        url, method = self.url.rstrip("/") + path, "PUT" if is_file else None
        try:
            request = urllib.request.Request(url, data, headers, method=method)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            if error.code in (429, 503):
                raise _Later(said) from error
            if error.code == 409:
                raise _Exists(f"{self.url} refuses ({error.code}): {said}") from error
            raise InputError(f"{self.url} refuses ({error.code}): {said}") from error
        except (http.client.InvalidURL, ValueError) as error:
            raise InputError(f"{self.url!r} is no address of a server; expected http://HOST:PORT") from error
        except http.client.HTTPException as error:
            raise OSError(f"what it says is no HTTP, or was cut off: {error!r}") from error


def expect_completed(job: Mapping[str, Any]) -> None:
    """Raises LoraloomError for a job that did not succeed."""
    if job["status"] != "completed":
        said = (job.get("error") or {}).get("message") or "no reason is known"
        raise LoraloomError(f"job {job['id']} is {job['status']}: {said}")


class _Exists(InputError):
    """The server has something of that name already."""


class _Later(Exception):
    """The server cannot do it at the moment."""


def _pictures(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    suffixes = (".png", ".jpg", ".jpeg", ".webp")
    return [f for f in job["outputs"] if f["type"] == "output" and f["filename"].lower().endswith(suffixes)]
