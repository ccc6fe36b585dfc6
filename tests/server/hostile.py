"""Requests that nobody sends by accident: routes × methods × malformed bodies, traversals, odd headers."""

# ruff: noqa: E501 - the tables are read by row
from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.jobs.tiny_runner import prompt

GET_ROUTES = (
    "/", "/prompt", "/queue", "/history", "/history/x", "/jobs", "/jobs/x", "/object_info", "/object_info/KSampler",
    "/models", "/models/loras", "/experiment/models", "/experiment/models/loras", "/view", "/view_metadata/loras",
    "/embeddings", "/features", "/system_stats", "/settings", "/settings/a", "/userdata", "/userdata/a", "/users",
    "/i18n", "/extensions", "/internal/logs", "/internal/logs/raw", "/internal/folder_paths",
    "/internal/files/output", "/templates/index.json", "/user.css", "/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/events",
    "/v1/queue", "/v1/openapi.json", "/nowhere", "/api", "/api/nowhere", "/loraloom/page.js",
)  # fmt: skip
POST_ROUTES = (
    "/prompt", "/queue", "/history", "/interrupt", "/free", "/jobs/cancel", "/jobs/x/cancel", "/settings",
    "/settings/a", "/userdata/a", "/userdata/a/move/b", "/upload/image", "/upload/mask", "/v1/jobs",
    "/v1/jobs/x/cancel", "/v1/jobs/x/retry",
)  # fmt: skip
METHODS = ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW")
TRAVERSALS = (
    "../secret", "..\\secret", "a/../../secret", "/etc/passwd", "C:\\Windows\\win.ini", "C:secret", "\\\\host\\share\\x",
    "\\\\?\\C:\\x", "....//secret", "..;/secret", "%2e%2e/secret", "%252e%252e%252fsecret", "..%c0%afsecret",
    "a\x00.png", "a\nb", "CON", "con.png", "aux.json", "x.", "x ", "a" * 5000, "é" * 120, "\u202egnp.exe",
    "link/secret", "link", "../secret [input]", "x [output]", "secret [output]", ".", "..", "", "~/x", "file:///etc/passwd",
    "\ud800", "a/b/c/" * 300, "*", "?", "<script>", "'; DROP TABLE jobs; --", "{{7*7}}", "$(id)",
)  # fmt: skip
SINKS = (
    "/view?filename={}", "/view?filename=a.png&subfolder={}", "/view?filename=a.png&type={}", "/api/view?filename={}",
    "/view?filename={}&preview=webp;90", "/view_metadata/loras?filename={}", "/userdata?dir={}", "/userdata/{}",
    "/models/{}", "/experiment/models/{}", "/templates/{}", "/{}", "/internal/files/{}", "/history/{}",
)  # fmt: skip
BODIES: tuple[bytes, ...] = (
    b"", b" ", b"{", b"[]", b"null", b"1", b'"x"', b"true", b"not json", b"\xff\xfe{\x00}\x00", b"\x00" * 100,
    b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": NaN}', b'{"prompt": {"1": null}}', b"\xf0\x28\x8c\x28",
    b'{"clear": "yes"}', b'{"delete": {"a": 1}}', b'{"delete": [null, [], {}]}', b'{"prompt_id": 7}',
    b'{"prompt": 1}', b'{"prompt": true}', b'{"prompt": 1.5}', b'{"prompt": "\\ud800"}', b'{"workflow": 1e999}', b"1e999",
    b'{"\\ud800": "\\udfff", "a": -1e999}', b'{"client_id": "\\ud800", "extra_data": {"a": 1e999}, "prompt": {}}',
    b'{"delete": 5, "clear": []}', b'{"job_ids": "x"}', b"a=b&c=d", b'{"__proto__": {"x": 1}}', b"\xef\xbb\xbf{}",
    json.dumps({"prompt": prompt(), "number": "x"}).encode(), b'{"workflow": 3}', b'{"workflow": {"nodes": 3}}',
)  # fmt: skip
SHAPES = (
    {"1": {}}, {"1": {"class_type": 5}}, {"1": {"class_type": "Save"}}, {"1": {"class_type": "Save", "inputs": []}},
    {"1": {"class_type": "Save", "inputs": {"value": ["1", 0]}}}, {"1": {"class_type": "Save", "inputs": {"value": ["2", 0]}}},
    {"1": {"class_type": "Save", "inputs": {"value": ["1", -1]}}}, {"": {"class_type": "Save", "inputs": {"value": 1}}},
    {"1": {"class_type": "Save", "inputs": {"value": [[], {}]}}}, {"1": {"class_type": "__proto__", "inputs": {}}},
    {"1": {"class_type": "Save", "inputs": {"value": ["1", 1e308]}}}, {"1": {"class_type": "Save", "inputs": {"value": [None, 0]}}},
    {"1": {"class_type": "x" * 5000, "inputs": {}}}, {"1": "text"}, {"1": {"class_type": "Save", "inputs": {"value": True}, "_meta": 5}},
    {"1": {"class_type": "Number", "inputs": {"value": "٣"}}, "2": {"class_type": "Save", "inputs": {"value": ["1", 0]}}},
    {"1": {"class_type": "Number", "inputs": {"value": 10**400}}, "2": {"class_type": "Save", "inputs": {"value": ["1", 0]}}},
    {"1": {"class_type": "Number", "inputs": {"value": ["2", 0]}}, "2": {"class_type": "Number", "inputs": {"value": ["1", 0]}},
     "3": {"class_type": "Save", "inputs": {"value": ["2", 0]}}},
)  # fmt: skip
ENVELOPES = (
    {"extra_data": 5}, {"extra_data": {"extra_pnginfo": 7}}, {"client_id": {"a": 1}}, {"client_id": "x" * 10_000},
    {"number": True}, {"number": [1]}, {"number": 1e300}, {"front": "yes"}, {"prompt_id": ""}, {"prompt_id": "a/b"},
    {"partial_execution_targets": "9"}, {"partial_execution_targets": [{}]}, {"partial_execution_targets": []},
    {"webhook": 3}, {"webhook": "file:///etc/passwd"}, {"webhook": "http://"}, {"webhook": "http://a..b/"},
    {"webhook": "http://h:99999/"}, {"webhook": "http://h:abc/"}, {"webhook": "http://[::1/"}, {"webhook": "http://h/\u00fc"},
    {"client_id": "\ud800"}, {"extra_data": {"a": "\ud800", "\udfff": 1}}, {"prompt_id": "\ud800"}, {"number": 1e17}, {"extra_data": {"preview_method": []}},
)  # fmt: skip
QUERIES = (
    "/history?max_items=abc", "/history?max_items=-5", "/history?offset=1e9", "/history?max_items=99999999999999999999",
    "/history?max_items=٣", "/history?offset=--1", "/jobs?limit=x", "/jobs?offset=-1", "/jobs?status=,,,",
    "/jobs?status=\x00", "/v1/jobs?limit=0", "/v1/jobs?offset=99999999999999999999", "/v1/jobs?status=odd",
    "/v1/jobs/x/events?after=abc", "/view?filename=a&preview=;;;", "/view?filename=a&channel=z", "/prompt?" + "a=b&" * 5000,
)  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict[str, str]())


def escaped(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="/")


def multipart(name: str, filename: str, content: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    """A form with one file."""
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode("utf-8", "replace")
        for key, value in fields.items()
    ]
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    parts.append(head.encode("utf-8", "replace") + content + b"\r\n--b--\r\n")
    return b"".join(parts), {"Content-Type": "multipart/form-data; boundary=b"}


def hostile_requests(picture: bytes, seed: int = 0) -> Iterator[Hostile]:
    """Every kind once, in an order that depends on the seed; more than 1,200."""
    found = [*_by_route(), *_by_header(), *_by_shape(), *_uploads(picture)]
    random.Random(seed).shuffle(found)
    yield from found


HEADERS: list[dict[str, str]] = [
    *({"Origin": text} for text in ("http://[", "http://[::1]x", "http://[fe80::1%]", "//", "http:", "", "\u00e9")),
    *({"Host": text} for text in ("[", "[::1", "a]b", "1:2:3", "127.0.0.1:x", "localhost:", "", "%", "\u00e9" * 99)),
    *({"Range": f"bytes={text}"} for text in ("-", "5-1", "0-0," * 500, "9" * 99, "-9" * 20, "a-b", "0-\u00b2")),
    *({"Cookie": text} for text in ("=", ";" * 999, "loraloom_token", 'a="', "\u00e9=\u00e9")),
    *({"Authorization": text} for text in ("Bearer", "Bearer ", "Basic !", "bearer \u00e9")),
    *({name: "\u00e9"} for name in ("Sec-Fetch-Site", "Sec-Fetch-Mode", "Content-Type", "Accept-Encoding")),
    {"If-Modified-Since": "never"}, {"If-None-Match": "\u00e9"}, {"If-Range": "x", "Range": "bytes=0-"},
    {"Content-Type": "multipart/form-data; boundary="}, {"Last-Event-ID": "\u00e9" * 99},
]  # fmt: skip


def _by_header() -> Iterator[Hostile]:
    for route, headers in itertools.product(
        ("/queue", "/prompt", "/v1/queue", "/view?filename=a.png"), HEADERS
    ):
        yield Hostile("GET", route, b"", headers)
    for route, headers in itertools.product(("/prompt", "/v1/jobs", "/upload/image", "/userdata/h"), HEADERS):
        yield Hostile("POST", route, b"{}", headers)


def _by_route() -> Iterator[Hostile]:
    for route, method in itertools.product(GET_ROUTES, METHODS):
        yield Hostile(method, route)
    for route, body in itertools.product(POST_ROUTES, BODIES):
        yield Hostile("POST", route, body)
    for route in POST_ROUTES:
        yield Hostile("POST", route, b"{}", {"Content-Type": "application/json; charset=utf-16"})
        yield Hostile("POST", route, b"{}", {"Content-Encoding": "gzip"})
        yield Hostile("POST", route, b"{}", {"Origin": "null"})
        yield Hostile("POST", route, b"{}", {"Origin": "http://evil.example"})
        yield Hostile("POST", route, b"{}", {"Host": "evil.example"})
    for sink, text in itertools.product(SINKS, TRAVERSALS):
        yield Hostile("GET", sink.format(escaped(text)))
    for target in QUERIES:
        yield Hostile("GET", escaped(target).replace("%3F", "?").replace("%3D", "=").replace("%26", "&"))
    for text in TRAVERSALS:
        name = quote(text.encode("utf-8", "surrogatepass"), safe="")
        yield Hostile("POST", f"/userdata/{name}", b"x")
        yield Hostile("DELETE", f"/userdata/{name}")
        yield Hostile("POST", f"/userdata/a/move/{name}")


def _by_shape() -> Iterator[Hostile]:
    for move in (
        b'{"number": 1e17}',
        b'{"number": 1e999}',
        b'{"number": NaN}',
        b'{"priority": 1e9}',
        b"[]",
        b"{",
        b"\xff",
    ):
        yield Hostile("PATCH", "/v1/jobs/x", move, {"Content-Type": "application/json"})
    for shape in SHAPES:
        yield Hostile("POST", "/prompt", json.dumps({"prompt": shape}).encode())
        yield Hostile("POST", "/v1/jobs", json.dumps({"workflow": shape}).encode())
    for envelope in ENVELOPES:
        yield Hostile("POST", "/prompt", json.dumps({"prompt": prompt(), **envelope}).encode())
    for text in TRAVERSALS[:-2]:
        if "\ud800" not in text:
            graph = {"1": {"class_type": "LoraLoader", "inputs": {"lora_name": text}},
                     "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": text}}}  # fmt: skip
            yield Hostile("POST", "/prompt", json.dumps({"prompt": graph}).encode())


def _uploads(picture: bytes) -> Iterator[Hostile]:
    for route, text in itertools.product(("/upload/image", "/upload/mask"), TRAVERSALS):
        for fields in ({}, {"subfolder": text}, {"type": text}):
            name = "a.png" if fields else text.replace("\n", "").replace('"', "") + ".png"
            body, headers = multipart("image", name, picture, **fields)
            yield Hostile("POST", route, body, headers)
    for content in (
        b"",
        b"<svg onload=alert(1)>",
        b"<html>",
        picture[:40],
        b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
    ):
        for name in ("a.png", "a.svg", "a.html", "a.js", "a"):
            body, headers = multipart("image", name, content)
            yield Hostile("POST", "/upload/image", body, headers)
    for reference in ("", "{", "[]", '{"filename": "../x"}', '{"filename": 5, "type": 7}', "null"):
        body, headers = multipart("image", "m.png", picture, original_ref=reference)
        yield Hostile("POST", "/upload/mask", body, headers)
