"""Our own interface under /v1."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tests.jobs.tiny_runner import prompt
from tests.server.running import RunningServer

from loraloom.cli.main import exit_code_of
from loraloom.server.api import WorkflowRefusal, WorkflowTrouble


def submit(server: RunningServer, graph: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = server.http.post("/v1/jobs", json={"workflow": graph, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def done(server: RunningServer, job_id: str) -> dict[str, Any]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        job = server.http.get(f"/v1/jobs/{job_id}").json()
        if job["status"] not in ("pending", "running"):
            return job
        time.sleep(0.05)
    raise AssertionError("the job has not ended")


def events(
    server: RunningServer, job_id: str, after: int = 0, count: int | None = None
) -> list[tuple[int | None, str, Any]]:
    """(id, kind, data) of a job's events, to its end or until there are `count`."""
    found: list[tuple[int | None, str, Any]] = []
    number, kind = None, ""
    headers = {"Last-Event-ID": str(after)}
    with server.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                number = int(value)
            elif name == "event":
                kind = value
            elif name == "data":
                found.append((number, kind, json.loads(value)))
                number = None
                if len(found) == count:
                    break
    return found


def test_a_job_from_submission_to_receipts(server: RunningServer) -> None:
    server.http.post("/v1/queue/pause")
    job = submit(server, prompt("Wait", value=5), previews=True)
    assert job["status"] == "pending"
    # Previews are told to those who listen while they are made.
    begin = threading.Timer(0.5, lambda: server.http.post("/v1/queue/resume"))
    begin.start()
    told = events(server, job["id"])
    begin.join()
    kinds = [kind for _, kind, _ in told]
    assert kinds[0] == "started"
    assert kinds[-1] == "completed"
    assert any(data.get("preview") for _, kind, data in told if kind == "progress")
    numbers = [number for number, _, _ in told if number is not None]
    assert numbers == sorted(set(numbers))
    job = done(server, job["id"])
    assert job["receipts"] == [{"node": "2", "matched": 2, "name": "a"}]
    assert job["warnings"] == ["node 2: slow"]
    assert server.http.get(job["outputs"][0]["url"]).text == "5"
    assert set(job["timings"]) == {"1", "2", "9"}


def test_a_reader_that_comes_back_gets_what_it_missed(server: RunningServer) -> None:
    job = submit(server, prompt("Wait", value=6, seconds=0.5))
    first = [e for e in events(server, job["id"], count=6) if e[0] is not None]
    done(server, job["id"])
    rest = events(server, job["id"], after=first[-1][0] or 0)
    everything = events(server, job["id"])
    assert [e[0] for e in first] + [e[0] for e in rest] == [e[0] for e in everything]
    assert rest[-1][1] == "completed"


def test_cancel_retry_move_forget(server: RunningServer) -> None:
    running = submit(server, prompt("Wait", seconds=60))["id"]
    a, b = (submit(server, prompt(value=i))["id"] for i in (1, 2))
    assert server.http.patch(f"/v1/jobs/{b}", json={"priority": 7}).json()["priority"] == 7
    assert server.http.delete(f"/v1/jobs/{a}").status_code == 409
    assert server.http.post(f"/v1/jobs/{a}/retry").status_code == 409
    assert server.http.post(f"/v1/jobs/{running}/cancel").json() == {"cancelled": True}
    assert done(server, running)["status"] == "cancelled"
    first, second = done(server, b), done(server, a)
    assert first["started"] <= second["started"]
    assert server.http.post(f"/v1/jobs/{a}/cancel").json() == {"cancelled": False}
    assert server.http.patch(f"/v1/jobs/{a}", json={"priority": 7}).status_code == 409
    failed = submit(server, prompt("Fail"))["id"]
    assert done(server, failed)["error"]["node"] == "2"
    assert server.http.post(f"/v1/jobs/{failed}/retry").json()["status"] == "pending"
    done(server, failed)
    assert server.http.delete(f"/v1/jobs/{failed}").status_code == 204
    assert server.http.get(f"/v1/jobs/{failed}").status_code == 404


def test_pause_and_resume(server: RunningServer) -> None:
    assert server.http.post("/v1/queue/pause").json()["paused"] is True
    job = submit(server, prompt())["id"]
    time.sleep(0.3)
    assert server.http.get(f"/v1/jobs/{job}").json()["status"] == "pending"
    assert server.http.post("/v1/queue/resume").json()["paused"] is False
    assert done(server, job)["status"] == "completed"


def test_mistakes_are_explained(server: RunningServer) -> None:
    post: Callable[[Any], Any] = lambda body: server.http.post("/v1/jobs", json=body)  # noqa: E731
    assert post({}).status_code == 400
    assert post({"workflow": {}, "odd": 1}).status_code == 400
    wrong = post({"workflow": {"1": {"class_type": "Nope", "inputs": {}}}})
    assert "Nope" in wrong.json()["detail"]["error"]["message"]
    job = submit(server, prompt(), id="mine-1")
    assert job["id"] == "mine-1"
    assert post({"workflow": prompt(), "id": "mine-1"}).status_code == 409
    assert server.http.get("/v1/jobs", params={"limit": 0}).status_code == 422


def test_the_schema_describes_every_operation(server: RunningServer) -> None:
    schema = server.http.get("/v1/openapi.json").json()
    paths = {path.removeprefix("/v1") for path in schema["paths"]}
    assert {"/jobs", "/jobs/{job_id}", "/jobs/{job_id}/events", "/queue", "/queue/pause"} <= paths
    assert "workflow" in json.dumps(schema["paths"])


def test_the_schema_names_the_refusals_too(server: RunningServer) -> None:
    schema = server.http.get("/v1/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert {"400", "401", "403", "408", "413", "503", "507"} <= set(operation["responses"]), (
                method,
                path,
            )
    job = submit(server, prompt())["id"]
    for body in (b"\xff", b"{", b'{"number": 1e17}', b'{"number": 1e999}', b'{"priority": null, "odd": 1}'):
        headers = {"Content-Type": "application/json"}
        answer = server.http.patch(f"/v1/jobs/{job}", content=body, headers=headers)
        assert str(answer.status_code) in schema["paths"]["/jobs/{job_id}"]["patch"]["responses"]
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"workflow": {"1": {"class_type": "Number", "inputs": {"value": 1}}}}, "prompt_no_outputs"),
        ({"workflow": {"9": {"class_type": "Save", "inputs": {}}}}, "prompt_outputs_failed_validation"),
        ({"workflow": {"9": {"class_type": "Nothing", "inputs": {}}}}, None),
        ({"workflow": {"a": 1}}, None),
        ({"workflow": {"nodes": [], "links": []}}, None),
        ({"workflow": {}}, None),
        ({"workflow": prompt(), "targets": []}, None),
        ({"workflow": prompt(), "targets": ["1"]}, "prompt_no_outputs"),
        ({"workflow": prompt(), "id": "a/b"}, None),
        ({"workflow": prompt(), "webhook": "file:///etc/passwd"}, None),
        ({"workflow": prompt(), "priority": 5000}, None),
        ({"workflow": prompt(), "odd": 1}, None),
    ],
)
def test_the_schema_describes_how_a_workflow_is_refused(
    server: RunningServer, body: dict[str, Any], kind: str | None
) -> None:
    answer = server.http.post("/v1/jobs", json=body)
    assert answer.status_code == 400
    detail = WorkflowRefusal.model_validate(answer.json()).detail
    assert kind is None or (isinstance(detail, WorkflowTrouble) and detail.error.type == kind)
    described = server.http.get("/v1/openapi.json").json()["paths"]["/jobs"]["post"]["responses"]["400"]
    assert "no output node" in described["description"]
    assert described["content"]["application/json"]["schema"]["$ref"].endswith("/WorkflowRefusal")


def test_a_path_says_all_its_methods(server: RunningServer) -> None:
    for path, methods in (
        ("/v1/jobs", "GET, POST"),
        ("/v1/jobs/x", "DELETE, GET, PATCH"),
        ("/v1/queue", "GET"),
    ):
        answer = server.http.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)


@contextmanager
def receiver() -> Generator[tuple[str, list[tuple[str, bytes]]], None, None]:
    """A small server that keeps what it is sent, after failing once."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["X-Loraloom-Signature"], body))
            self.send_response(500 if len(got) == 1 else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/hook?a=1", got
    found.shutdown()
    thread.join()
    found.server_close()


def test_a_webhook_is_signed_and_tried_again(server: RunningServer) -> None:
    with receiver() as (url, got):
        job = submit(server, prompt(value=77), webhook=url)["id"]
        until = time.monotonic() + 20
        while len(got) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    signature, body = got[1]
    assert json.loads(body)["job"]["id"] == job
    assert json.loads(body)["event"] == "job.completed"
    seconds, digest = (part.partition("=")[2] for part in signature.split(","))
    secret = (server.folder / "user" / "webhook.secret").read_bytes()
    assert hmac.new(secret, f"{seconds}.".encode() + body, hashlib.sha256).hexdigest() == digest


def test_a_running_worker_says_what_it_does(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    job = server.submit(prompt("Wait", value=13, seconds=5.0))
    until = time.monotonic() + 20
    while not (doing := server.http.get("/v1/workers").json()["workers"][0]["doing"]).startswith("Wait "):
        assert time.monotonic() < until, doing
        time.sleep(0.05)
    assert doing.endswith(" of 250")
    assert exit_code_of(["cluster", "status", "--server", server.url]) == 0
    assert "Wait" in capsys.readouterr().out
    server.http.post(f"/v1/jobs/{job}/cancel")


def test_the_workers_are_shown_and_can_be_drained(server: RunningServer) -> None:
    server.history(server.submit(prompt(value=11)))
    found = server.http.get("/v1/workers").json()
    (worker,) = found["workers"]
    assert (worker["name"], worker["status"], found["nodes"]) == ("here-0", "idle", [])
    assert worker["per_minute"] > 0
    drained = server.http.post("/v1/workers/drain", params={"name": "here-0"}).json()
    assert drained["workers"][0]["status"] == "draining"
    job = server.submit(prompt(value=12))
    assert server.http.get(f"/v1/jobs/{job}").json()["status"] == "pending"
    server.http.post("/v1/workers/drain", params={"name": "here-0", "draining": "false"})
    assert server.history(job)["status"]["status_str"] == "success"
    assert server.http.post("/v1/workers/drain", params={"name": "nobody"}).status_code == 404
    assert server.http.post("/v1/workers/drain", params={"name": ""}).status_code == 404
