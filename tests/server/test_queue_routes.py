"""ComfyUI's routes around the queue, over HTTP and WebSocket."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import pytest
from tests.jobs.tiny_runner import prompt
from tests.server.running import RunningServer
from websockets.sync.client import connect

from loraloom.jobs.store import Store
from loraloom.server import wire


def messages_until_end(socket: Any, job_id: str) -> tuple[list[dict[str, Any]], list[bytes]]:
    """What a client is told, up to the message that ends the job."""
    texts: list[dict[str, Any]] = []
    previews: list[bytes] = []
    while True:
        data = socket.recv(timeout=30)
        if isinstance(data, bytes):
            previews.append(data)
            continue
        texts.append(json.loads(data))
        said = texts[-1]["data"]
        if texts[-1]["type"] == "executing" and said["node"] is None and said["prompt_id"] == job_id:
            return texts, previews


def test_a_prompt_runs_and_its_client_is_told(server: RunningServer) -> None:
    with connect(f"{server.ws}?clientId=me") as socket:
        first = json.loads(socket.recv(timeout=5))
        assert first["type"] == "status"
        assert first["data"]["sid"] == "me"
        assert "queue_remaining" in first["data"]["status"]["exec_info"]
        job_id = server.submit(
            prompt("Wait"), client_id="me", extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}}
        )
        texts, previews = messages_until_end(socket, job_id)
        # The result is there before the end is told.
        entry = server.http.get(f"/history/{job_id}").json()[job_id]
    kinds = [t["type"] for t in texts if t["type"] != "status"]
    assert kinds[:2] == ["execution_start", "execution_cached"]
    assert kinds[-2:] == ["execution_success", "executing"]
    assert [t["data"]["node"] for t in texts if t["type"] == "executing"] == ["1", "2", "9", None]
    executed = next(t["data"] for t in texts if t["type"] == "executed")
    assert executed["node"] == "9"
    assert executed["output"] == entry["outputs"]["9"]
    states = [t["data"]["nodes"] for t in texts if t["type"] == "progress_state"]
    assert states[-1]["2"]["state"] == "finished"
    assert any(s.get("2", {}).get("state") == "running" for s in states)
    assert previews == []
    assert entry["status"]["status_str"] == "success"
    assert [m[0] for m in entry["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
        "execution_success",
    ]
    assert entry["prompt"][1] == job_id
    assert entry["prompt"][4] == ["9"]
    assert entry["receipts"] == [{"node": "2", "matched": 2, "name": "a"}]
    image = entry["outputs"]["9"]["images"][0]
    assert server.http.get("/view", params=image).text == "7"


def test_previews_come_in_the_form_the_client_understands(server: RunningServer) -> None:
    extra = {"preview_method": "auto"}
    with connect(f"{server.ws}?clientId=old") as socket:
        job_id = server.submit(prompt("Wait", value=11), client_id="old", extra_data=extra)
        _, previews = messages_until_end(socket, job_id)
        assert previews
        assert struct.unpack(">II", previews[0][:8]) == (1, 1)
    with connect(f"{server.ws}?clientId=new") as socket:
        socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        while json.loads(socket.recv(timeout=5))["type"] != "feature_flags":
            pass
        job_id = server.submit(prompt("Wait", value=12), client_id="new", extra_data=extra)
        _, previews = messages_until_end(socket, job_id)
        kind, length = struct.unpack(">II", previews[0][:8])
        assert kind == 4
        assert json.loads(previews[0][8 : 8 + length])["node_id"] == "2"


def test_progress_goes_to_the_client_that_asked_only(server: RunningServer) -> None:
    with connect(f"{server.ws}?clientId=other") as other:
        server.history(server.submit(prompt("Wait", value=21), client_id="me"))
        kinds: set[str] = set()
        try:
            while True:
                kinds.add(json.loads(other.recv(timeout=0.3))["type"])
        except TimeoutError:
            pass
        assert kinds == {"status"}


def test_a_failure_is_told_with_node_and_cause(server: RunningServer) -> None:
    with connect(f"{server.ws}?clientId=me") as socket:
        job_id = server.submit(prompt("Fail"), client_id="me")
        texts, _ = messages_until_end(socket, job_id)
    error = next(t["data"] for t in texts if t["type"] == "execution_error")
    assert error["node_id"] == "2"
    assert error["node_type"] == "Fail"
    assert error["exception_message"] == "cannot use 7"
    assert error["exception_type"] == "RuntimeError"
    assert error["current_inputs"] == {"value": [7]}
    assert "1" in error["executed"]
    entry = server.history(job_id)
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["messages"][-1][0] == "execution_error"
    assert server.http.get(f"/api/jobs/{job_id}").json()["status"] == "failed"


def _two_branches() -> dict[str, Any]:
    failing: dict[str, Any] = {f"f{i}": n for i, n in prompt("Fail").items()}
    for n in failing.values():
        n["inputs"] = {k: [f"f{v[0]}", v[1]] if isinstance(v, list) else v for k, v in n["inputs"].items()}
    return {**prompt("Wait", value=31), **failing}


@pytest.mark.parametrize("targets", [None, ["f9"]])
def test_independent_branches_go_on_where_that_is_asked_for(server: RunningServer, targets: Any) -> None:
    more: dict[str, Any] = {"node_failure_policy": "continue_independent", "client_id": "branches"}
    if targets is not None:
        more["partial_execution_targets"] = targets
    with connect(f"{server.ws}?clientId=branches") as socket:
        job_id = server.submit(_two_branches(), **more)
        texts, _ = messages_until_end(socket, job_id)
        entry = server.http.get(f"/history/{job_id}").json()[job_id]
    error = next(t["data"] for t in texts if t["type"] == "execution_node_error")
    assert (error["node_id"], error["blocked_node_ids"]) == ("f2", ["f9"])
    assert error["exception_message"] == "cannot use 7"
    said = {
        "has_errors": True,
        "execution_error_count": 1,
        "failed_node_ids": ["f2"],
        "blocked_node_ids": ["f9"],
        "blocked_output_node_ids": ["f9"],
        "successful_output_node_ids": [] if targets else ["9"],
    }
    summary = said if targets else {**said, "completion_status": "partial_success"}
    assert entry["status"]["execution_summary"] == summary
    kinds = [m[0] for m in entry["status"]["messages"]]
    view = server.http.get(f"/v1/jobs/{job_id}").json()
    assert view["partial"]["failed"] == ["f2"]
    assert view["warnings"][-1] == "node f2 “middle” (Fail): cannot use 7; so that f9 did not run"
    if targets:
        assert kinds[-2:] == ["execution_node_error", "execution_error"]
        assert (view["status"], view["error"]["node"]) == ("failed", "f2")
        return
    success = next(t["data"] for t in texts if t["type"] == "execution_success")
    assert success["completion_status"] == "partial_success"
    assert kinds[-2:] == ["execution_node_error", "execution_success"]
    states = [t["data"]["nodes"] for t in texts if t["type"] == "progress_state"]
    assert (states[-1]["f2"]["state"], states[-1]["f9"]["state"]) == ("error", "blocked")
    assert "9" in entry["outputs"]
    assert (view["status"], view["error"]) == ("completed", None)


def test_a_failure_ends_the_job_unless_it_is_asked_to_go_on(server: RunningServer) -> None:
    entry = server.history(server.submit(_two_branches(), node_failure_policy="fail_fast"))
    assert entry["status"]["status_str"] == "error"
    assert "execution_summary" not in entry["status"]
    body = {"prompt": _two_branches(), "node_failure_policy": "go_on"}
    refused = server.http.post("/prompt", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_node_failure_policy"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "no_prompt"),
        ({"prompt": {}}, "prompt_no_outputs"),
        ({"prompt": {"1": {"class_type": "Nope", "inputs": {}}}}, "invalid_prompt"),
        ({"prompt": {"9": {"class_type": "SaveImage", "inputs": {}}}}, "prompt_outputs_failed_validation"),
        ({"prompt": prompt(), "partial_execution_targets": []}, "prompt_no_outputs"),
        ({"prompt": prompt(), "prompt_id": "../../x"}, "invalid_prompt_id"),
        ({"prompt": [1]}, "invalid_prompt"),
    ],
)
def test_prompts_that_cannot_run_are_refused_in_comfyuis_words(
    server: RunningServer, body: Any, kind: str
) -> None:
    answer = server.http.post("/prompt", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == kind
    assert set(answer.json()["error"]) == {"type", "message", "details", "extra_info"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"prompt": 3}', "prompt is a number, expected an object"),
        ('{"prompt": true}', "prompt is true or false, expected an object"),
        ('{"prompt": {"1": "x"}}', "node 1 is a text; expected an object"),
        ("[]", "the body is a list, expected a JSON object"),
    ],
)
def test_values_of_another_kind_are_told_in_words(server: RunningServer, body: str, said: str) -> None:
    assert said in server.http.post("/prompt", content=body).text


def test_a_workflow_in_another_form_is_told_what_it_is(server: RunningServer) -> None:
    editor = {"last_node_id": 1, "nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}
    error = server.http.post("/prompt", json={"prompt": editor}).json()["error"]
    assert error["type"] == "invalid_prompt"
    assert "editor's format" in error["message"] and "Export (API)" in error["message"]
    for body in (editor, prompt()):
        error = server.http.post("/prompt", json=body).json()["error"]
        assert (error["type"], error["details"]) == (
            "no_prompt",
            'send {"prompt": …} with the workflow in it',
        )


def test_missing_inputs_are_listed_by_node(server: RunningServer) -> None:
    answer = server.http.post(
        "/prompt", json={"prompt": {"9": {"class_type": "SaveImage", "inputs": {}}}}
    ).json()
    node = answer["node_errors"]["9"]
    assert node["class_type"] == "SaveImage"
    assert node["dependent_outputs"] == ["9"]
    assert {e["details"] for e in node["errors"]} == {"filename_prefix", "images"}
    assert {e["type"] for e in node["errors"]} == {"required_input_missing"}


def test_outputs_that_can_run_do_though_others_cannot(server: RunningServer) -> None:
    graph = {**prompt(value=31), "8": {"class_type": "Save", "inputs": {"value": ["77", 0]}}}
    answer = server.http.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 200
    assert list(answer.json()["node_errors"]) == ["8"]
    assert list(server.history(answer.json()["prompt_id"])["outputs"]) == ["9"]


def test_what_a_nodes_own_check_objects_to_is_refused(server: RunningServer) -> None:
    graph = {"1": {"class_type": "Even", "inputs": {"value": 3}}}
    answer = server.http.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 400
    found = answer.json()["node_errors"]["1"]["errors"][0]
    assert (found["type"], found["details"]) == ("custom_validation_failed", "3 is odd")
    graph["2"] = {"class_type": "Even", "inputs": {"value": 4}}
    answer = server.http.post("/prompt", json={"prompt": graph})
    assert list(answer.json()["node_errors"]) == ["1"]
    assert server.history(answer.json()["prompt_id"])["outputs"] == {"2": {"text": ["4"]}}


def test_partial_execution(server: RunningServer) -> None:
    graph = {**prompt(value=41), "8": {"class_type": "Save", "inputs": {"value": ["1", 0], "name": "b"}}}
    job_id = server.submit(graph, partial_execution_targets=["8"])
    assert list(server.history(job_id)["outputs"]) == ["8"]


def test_bodies_without_a_json_content_type_are_read(server: RunningServer) -> None:
    body = json.dumps({"prompt": prompt()}).encode()
    for headers in (
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
    ):
        assert server.http.post("/prompt", content=body, headers=headers).status_code == 200


def test_the_queue_can_be_seen_reordered_and_cleared(server: RunningServer) -> None:
    running = server.submit(prompt("Wait", seconds=60))
    until = time.monotonic() + 10
    while running not in [i[1] for i in server.http.get("/queue").json()["queue_running"]]:
        assert time.monotonic() < until
        time.sleep(0.05)
    waiting = [server.submit(prompt(value=100 + i)) for i in range(3)]
    front = server.submit(prompt(value=99), front=True)
    queue = server.http.get("/queue").json()
    assert [item[1] for item in queue["queue_running"]] == [running]
    assert [item[1] for item in queue["queue_pending"]] == [front, *waiting]
    assert server.http.get("/prompt").json() == {"exec_info": {"queue_remaining": 5}}
    assert server.http.post("/queue", json={"delete": [waiting[0], "nobody"]}).status_code == 200
    assert [i[1] for i in server.http.get("/queue").json()["queue_pending"]] == [front, *waiting[1:]]
    assert server.http.get(f"/history/{running}").json() == {}
    assert server.http.post("/interrupt", json={"prompt_id": "another"}).status_code == 200
    assert server.http.post(f"/api/jobs/{waiting[1]}/cancel").json() == {"cancelled": True}
    assert server.http.post("/queue", json={"clear": True}).status_code == 200
    assert server.http.get("/queue").json()["queue_pending"] == []
    assert server.http.post("/interrupt").status_code == 200
    entry = server.history(running)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert server.http.get(f"/jobs/{front}").json()["status"] == "cancelled"
    assert front not in server.http.get("/history").json()


def test_jobs_are_listed_for_newer_editors(server: RunningServer) -> None:
    ids = [server.submit(prompt(value=200 + i)) for i in range(3)]
    for job_id in ids:
        server.history(job_id)
    answer = server.http.get("/api/jobs", params={"status": "completed", "limit": 2}).json()
    assert [job["id"] for job in answer["jobs"]] == [ids[2], ids[1]]
    assert answer["pagination"]["has_more"] is True
    job = answer["jobs"][0]
    assert job["status"] == "completed"
    assert job["preview_output"]["nodeId"] == "9"
    assert job["execution_end_time"] >= job["execution_start_time"] >= job["create_time"]
    detail = server.http.get(f"/api/jobs/{ids[0]}").json()
    assert detail["workflow"]["prompt"]["1"]["inputs"]["value"] == 200
    assert server.http.get("/api/jobs/nobody").status_code == 404
    assert server.http.get("/api/jobs", params={"status": "odd"}).status_code == 400
    assert server.http.get("/api/jobs", params={"limit": 5000}).json()["pagination"]["limit"] == 1000


def test_history_pages_and_deletion(server: RunningServer) -> None:
    ids = [server.submit(prompt(value=300 + i)) for i in range(4)]
    for job_id in ids:
        server.history(job_id)
    assert list(server.http.get("/history", params={"max_items": 2}).json()) == ids[2:]
    everything = list(server.http.get("/history").json())
    assert list(server.http.get("/history", params={"offset": 1, "max_items": 2}).json()) == everything[1:3]
    assert server.http.get("/history", params={"max_items": "abc"}).status_code == 400
    assert server.http.post("/history", json={"delete": [ids[0]]}).status_code == 200
    assert server.http.get(f"/history/{ids[0]}").json() == {}
    assert server.http.post("/history", json={"clear": True}).status_code == 200
    assert server.http.get("/history").json() == {}


def test_a_workflow_of_the_editor_is_converted(server: RunningServer) -> None:
    workflow = {
        "nodes": [
            {"id": 4, "type": "Number", "mode": 0, "inputs": [], "widgets_values": [5],
             "outputs": [{"name": "INT", "type": "INT", "links": [1]}]},
            {"id": 5, "type": "Save", "mode": 0, "inputs": [{"name": "value", "type": "*", "link": 1}],
             "outputs": [], "widgets_values": ["ui"]},
        ],
        "links": [[1, 4, 0, 5, 0, "INT"]],
        "version": 0.4,
    }  # fmt: skip
    job_id = server.http.post("/prompt", json={"workflow": workflow}).json()["prompt_id"]
    entry = server.history(job_id)
    assert entry["outputs"]["5"]["images"][0]["filename"].startswith("ui_")
    assert entry["prompt"][3]["extra_pnginfo"]["workflow"] == workflow


def test_a_client_that_comes_back_is_told_where_its_job_is(server: RunningServer) -> None:
    job_id = server.submit(prompt("Wait", seconds=3), client_id="back")
    time.sleep(1.0)
    with connect(f"{server.ws}?clientId=back") as socket:
        kinds = [json.loads(socket.recv(timeout=5))["type"] for _ in range(4)]
        assert kinds[0] == "status"
        assert "progress_state" in kinds
        texts, _ = messages_until_end(socket, job_id)
        assert any(t["type"] == "execution_success" for t in texts)


def test_a_client_that_was_away_is_told_what_ended_meanwhile(server: RunningServer) -> None:
    with connect(f"{server.ws}?clientId=away"):
        pass
    good = server.submit(prompt(value=61), client_id="away")
    bad = server.submit(prompt("Fail", value=62), client_id="away")
    server.history(good)
    server.history(bad)
    with connect(f"{server.ws}?clientId=away") as socket:
        first, _ = messages_until_end(socket, good)
        second, _ = messages_until_end(socket, bad)
    kinds = [t["type"] for t in first]
    assert kinds[:3] == ["status", "execution_start", "execution_cached"]
    assert kinds[3:] == ["executed", "execution_success", "executing"]
    assert first[3]["data"]["output"] == server.history(good)["outputs"]["9"]
    assert [t["type"] for t in second][-2:] == ["execution_error", "executing"]
    with connect(f"{server.ws}?clientId=away") as socket:
        assert json.loads(socket.recv(timeout=5))["type"] == "status"
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.3)


@pytest.mark.timeout(120)
def test_a_client_of_thousands_of_nodes_is_told_all_that_counts(server: RunningServer) -> None:
    nodes = 3000
    graph: dict[str, Any] = {str(i): {"class_type": "Number", "inputs": {"value": i}} for i in range(nodes)}
    for i in range(1, nodes):
        graph[str(i)]["inputs"]["value"] = [str(i - 1), 0]
    graph["end"] = {"class_type": "Save", "inputs": {"value": [str(nodes - 1), 0]}}
    with connect(f"{server.ws}?clientId=many", max_size=None) as socket:
        job_id = server.submit(graph, client_id="many")
        texts, _ = messages_until_end(socket, job_id)
    kinds = [t["type"] for t in texts]
    assert kinds[-2:] == ["execution_success", "executing"]
    assert kinds.count("executing") == nodes + 2
    states = [t["data"]["nodes"] for t in texts if t["type"] == "progress_state"]
    assert len(states) < nodes / 4
    assert len(states[-1]) == nodes + 1
    assert {s["state"] for s in states[-1].values()} == {"finished"}


def test_the_queue_is_listed_as_each_of_its_jobs_is(start_server: Any) -> None:
    found = start_server("--paused")
    for number, extra in (
        (None, {}),
        (2.5, {"a": 1.0, "ü": "\u2028", "n": None}),
        (-7, {"create_time": "x"}),
    ):
        more = {} if number is None else {"number": number}
        found.submit(prompt(value=1, name="ä"), client_id='c"d', extra_data=extra, **more)
    found.submit(prompt(value=2), front=True)
    listed = found.http.get("/queue").json()["queue_pending"]
    assert [item[0] for item in listed] == sorted(item[0] for item in listed)
    store = Store.reader(found.folder / "user" / "queue.db")
    expected: list[Any] = [wire.queue_item(job) for job in store.waiting()]
    store.close()
    for item, wanted in zip(listed, expected, strict=True):
        assert item[:3] + item[4:] == wanted[:3] + wanted[4:]
        assert {**item[3], "create_time": 0} == {**wanted[3], "create_time": 0}
        assert abs(item[3]["create_time"] - wanted[3]["create_time"]) <= 1


def test_a_long_history_holds_up_nobody_and_is_whole(server: RunningServer) -> None:
    ids = [server.submit(prompt(value=n)) for n in range(45)]
    server.history(ids[-1])
    whole = server.http.get("/history").json()
    assert [i for i in whole if i in ids] == ids
    assert whole[ids[7]] == server.http.get(f"/history/{ids[7]}").json()[ids[7]]
    assert [*server.http.get("/history?max_items=21").json()] == ids[-21:]


def test_nobody_reads_but_the_others_do(server: RunningServer) -> None:
    """A client that never reads is dropped and does not delay the others."""
    import socket as sockets

    host, port = server.url.removeprefix("http://").split(":")
    stalled = sockets.create_connection((host, int(port)))
    stalled.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    stalled.sendall(
        f"GET /ws?clientId=stalled HTTP/1.1\r\nHost: {host}:{port}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    graph = prompt("Wait", seconds=1.0)
    long_name = "n" * 60_000
    graph[long_name] = {"class_type": "Wait", "inputs": {"value": 1, "seconds": 6}}
    graph["10"] = {"class_type": "Save", "inputs": {"value": [long_name, 0]}}
    stalled_job = server.submit(graph, client_id="stalled")
    slowest = 0.0
    with connect(f"{server.ws}?clientId=quick") as socket:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            begun = time.monotonic()
            server.http.get("/prompt")
            socket.ping().wait(5)
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.02)
    stalled.close()
    assert slowest < 1.0
    server.http.post("/interrupt")
    server.history(stalled_job)


def test_the_server_answers_before_its_worker_is_ready(start_server: Any) -> None:
    found = start_server("--paused")
    assert found.http.get("/prompt").status_code == 200
    assert found.seconds_to_listen < 10


def test_a_killed_server_goes_on_where_it_was(start_server: Any) -> None:
    first = start_server()
    running = first.submit(prompt("Wait", seconds=1.0))
    waiting = [first.submit(prompt(value=i)) for i in range(5)]
    time.sleep(0.3)
    first.kill()
    second = start_server()
    for job_id in (running, *waiting):
        assert second.history(job_id)["status"]["status_str"] == "success"
    assert len(second.http.get("/history").json()) == 6
