"""`loraloom serve --custom-nodes`: it listens at once, and learns the packs' classes from its worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
from tests.custom_nodes.conftest import CUSTOM_NODES
from tests.server.editor import serve


def finished(http: httpx.Client, job_id: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while not (found := http.get(f"/history/{job_id}").json()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return found[job_id]


def test_classes_are_learnt_from_the_worker_and_kept_for_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    options = ("--custom-nodes", str(CUSTOM_NODES), "--no-frontend")
    graph = {
        "1": {"class_type": "TpNumber", "inputs": {"value": 4}},
        "2": {"class_type": "TpShow", "inputs": {"value": ["1", 0]}},
    }
    process, url = serve(tmp_path, *options)
    try:
        with httpx.Client(base_url=url, timeout=60) as http:
            begun = time.monotonic()
            assert http.get("/prompt").status_code == 200
            assert time.monotonic() - begun < 5
            answer = http.post("/prompt", json={"prompt": graph})
            assert answer.status_code == 200, answer.text
            assert finished(http, answer.json()["prompt_id"])["outputs"]["2"]["shown"] == [4]
            assert "TpNumber" in http.get("/object_info").json()
            wrong = {"1": {"class_type": "TpChecked", "inputs": {"size": 11, "kind": "a", "other": 1}}}
            refused = http.post("/prompt", json={"prompt": wrong})
            assert "size 11 is too much" in refused.text
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "user/node_packs.json").is_file()
    process, url = serve(tmp_path, *options, "--start-paused")
    try:
        with httpx.Client(base_url=url, timeout=60) as http:
            assert "TpNumber" in http.get("/object_info/TpNumber").json()
    finally:
        process.kill()
        process.wait()
