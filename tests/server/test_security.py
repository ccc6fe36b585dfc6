"""Who may ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from tests.server.running import RunningServer
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from loraloom.errors import InputError
from loraloom.server.paths import annotated, inside
from loraloom.server.security import COOKIE, Security, check_host, check_origin, check_token
from loraloom.server.settings import ServerSettings

HERE = Path("/nowhere")
OPEN = ServerSettings(HERE, HERE, HERE, HERE, allow_hosts=frozenset({"pics.example"}),
                      allow_origins=frozenset({"https://app.example"}))  # fmt: skip


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8188", True), ("127.0.0.1:8188", True), ("[::1]:8188", True), ("192.168.1.5:8188", True),
        ("LOCALHOST", True), ("pics.example:80", True), ("evil.example:8188", False),
        ("localhost.evil.example", False),
        ("", False), ("127.0.0.1.evil.example", False), ("a@localhost", False),
    ],
)  # fmt: skip
def test_host_names(host: str, allowed: bool) -> None:
    assert (check_host({"host": host}, OPEN) is None) == allowed


@pytest.mark.parametrize(
    ("method", "headers", "allowed"),
    [
        ("POST", {}, True),
        ("POST", {"origin": "http://localhost:8188"}, True),
        ("POST", {"origin": "https://app.example"}, True),
        ("POST", {"origin": "null"}, False),
        ("POST", {"origin": "http://localhost:9999"}, False),
        ("POST", {"origin": "http://evil.example"}, False),
        ("POST", {"sec-fetch-site": "cross-site"}, False),
        ("POST", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),
        ("POST", {"sec-fetch-site": "same-origin", "origin": "http://localhost:8188"}, True),
        (
            "GET",
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
            True,
        ),
        (
            "GET",
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
            False,
        ),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
        ("GET", {"origin": "http://evil.example"}, False),
        ("GET", {"sec-fetch-site": "none"}, True),
        ("WEBSOCKET", {"origin": "null"}, False),
        ("WEBSOCKET", {"origin": "http://evil.example"}, False),
        ("WEBSOCKET", {"origin": "http://localhost:8188"}, True),
        ("WEBSOCKET", {}, True),
    ],
)
def test_origins(method: str, headers: dict[str, str], allowed: bool) -> None:
    assert (check_origin(method, {"host": "localhost:8188", **headers}, OPEN) is None) == allowed


@pytest.mark.parametrize(
    ("headers", "query", "allowed"),
    [
        ({}, {}, False),
        ({"authorization": "Bearer secret-1"}, {}, True),
        ({"authorization": "bearer secret-1"}, {}, True),
        ({"authorization": "Basic secret-1"}, {}, False),
        ({"authorization": "Bearer secret-2"}, {}, False),
        ({"cookie": "a=b; loraloom_token=secret-1"}, {}, True),
        ({}, {"token": "secret-1"}, True),
        ({}, {"token": "sécret"}, False),
    ],
)
def test_tokens(headers: dict[str, str], query: dict[str, str], allowed: bool) -> None:
    settings = ServerSettings(HERE, HERE, HERE, HERE, token="secret-1")
    assert (check_token(headers, query, settings) is None) == allowed
    assert check_token(headers, query, OPEN) is None


def test_other_addresses_need_a_token() -> None:
    with pytest.raises(InputError, match="--token"):
        ServerSettings(HERE, HERE, HERE, HERE, listen="0.0.0.0").check()
    ServerSettings(HERE, HERE, HERE, HERE, listen="0.0.0.0", token="secret-1").check()
    ServerSettings(HERE, HERE, HERE, HERE, listen="0.0.0.0", insecure=True).check()


def test_a_token_opens_every_door_and_nothing_else_does(start_server: Callable[..., RunningServer]) -> None:
    server = start_server("--token", "secret-12")
    for path in ("/", "/prompt", "/api/queue", "/view?filename=x", "/v1/queue", "/user.css"):
        assert server.http.get(path).status_code == 401
        assert server.http.get(path, headers={"Authorization": "Bearer secret-12"}).status_code != 401
    with pytest.raises(InvalidStatus):
        connect(server.ws)
    with connect(f"{server.ws}?token=secret-12") as socket:
        assert '"status"' in str(socket.recv(timeout=5))
    redirect = server.http.get("/prompt?token=secret-12&a=1")
    assert (redirect.status_code, redirect.headers["location"]) == (303, "/prompt?a=1")
    assert "HttpOnly" in redirect.headers["set-cookie"]
    assert server.http.get("/prompt").status_code == 200


def test_names_stay_in_their_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to(root / "loop")
    assert inside(root, "deep/a.png") == root.resolve() / "deep" / "a.png"
    assert inside(root, "deep\\a.png") == root.resolve() / "deep" / "a.png"
    for name in (
        "../secret",
        "a/../../secret",
        "/etc/passwd",
        "C:x",
        "link",
        "a\0",
        "..\\secret",
        "nul",
        "x.",
    ):
        with pytest.raises(HTTPException):
            inside(root, name)
    assert annotated("a.png [input]", "output") == ("a.png", "input")
    assert annotated("a.png [secret]", "output") == ("a.png [secret]", "output")


def guarded(token: str = "secret-12") -> TestClient:
    """What stands before a server, which here answers everything."""
    settings = ServerSettings(HERE, HERE, HERE, HERE, token=token)
    return TestClient(
        Security(PlainTextResponse("inside"), settings), "http://localhost", follow_redirects=False
    )


@pytest.mark.parametrize(
    ("target", "leads_to"),
    [
        ("/?token=secret-12", "/"),
        ("/loraloom?token=secret-12&b=%2F%26", "/loraloom?b=%2F%26"),
        ("//evil.example/?token=secret-12", "/evil.example/"),
        ("/\\evil.example?token=secret-12", "/evil.example"),
        ("/%0d%0aSet-Cookie:%20a=b?token=secret-12", "/%0D%0ASet-Cookie:%20a=b"),
    ],
)
def test_a_token_in_the_address_leads_nowhere_else(target: str, leads_to: str) -> None:
    answer = guarded().get(f"http://localhost{target}")
    assert (answer.status_code, answer.headers["location"]) == (303, leads_to)
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=secret-12; HttpOnly;")


def test_an_old_token_in_the_address_does_not_replace_the_right_one() -> None:
    answer = guarded().get("/?token=old", headers={"Cookie": f"{COOKIE}=secret-12"})
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=secret-12;")


@pytest.mark.parametrize(
    ("target", "cookie", "said"),
    [("/", "", "asks for its token"), ("/?token=x", "", "not this"), ("/", f"{COOKIE}=x", "not this")],
)
def test_a_person_is_asked_for_the_token_and_a_program_is_told(target: str, cookie: str, said: str) -> None:
    client = guarded()
    page = client.get(target, headers={"Cookie": cookie, "Sec-Fetch-Mode": "navigate"})
    assert page.status_code == 401 and said in page.text and "inside" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (page.headers["www-authenticate"], page.headers["cache-control"]) == ("Bearer", "no-store")
    told = client.get(target, headers={"Cookie": cookie})
    assert told.status_code == 401 and "asks for its token" in told.json()["error"]


def test_a_websocket_of_another_origin_is_closed() -> None:
    client = guarded()
    refused = {"Origin": "http://evil.example", "Authorization": "Bearer secret-12"}
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/ws", headers=refused):
        pass
    assert caught.value.code == 1008


def test_answers_are_taken_for_nothing_else_unless_they_say_so() -> None:
    plain = guarded().get("/", headers={"Authorization": "Bearer secret-12"})
    assert (plain.text, plain.headers["x-content-type-options"]) == ("inside", "nosniff")
    settings = ServerSettings(HERE, HERE, HERE, HERE)
    own = Security(PlainTextResponse("x", headers={"Referrer-Policy": "origin"}), settings)
    assert TestClient(own, "http://localhost").get("/").headers.get_list("referrer-policy") == ["origin"]
