"""The page itself: its files and its policy."""

from __future__ import annotations

from tests.server.running import RunningServer


def test_the_page_comes_under_a_strict_policy(server: RunningServer) -> None:
    for path in ("/", "/loraloom"):
        answer = server.http.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "<script>" not in answer.text
        assert " style=" not in answer.text
    for name, kind in (("app.js", "text/javascript"), ("theme.css", "text/css"),
                       ("icon.svg", "image/svg+xml"),
                       ("vendor/preact.mjs", "text/javascript"),
                       ("vendor/inter-latin-wght-normal.woff2", "font/woff2")):  # fmt: skip
        assert server.http.get(f"/loraloom/{name}").headers["content-type"].startswith(kind)
    for name in ("../page.py", "%2e%2e/page.py", "..%2fpage.py", "nothing.js", ""):
        assert server.http.get(f"/loraloom/{name}").status_code in (400, 403, 404)


def test_every_module_that_a_module_names_is_there(server: RunningServer) -> None:
    waiting, seen = ["app.js"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        answer = server.http.get(f"/loraloom/{name}")
        assert answer.status_code == 200, name
        folder = "vendor/" if name.startswith("vendor/") else ""
        named = [
            line.split('from "./')[1].split('"')[0] for line in answer.text.splitlines() if 'from "./' in line
        ]
        waiting += [folder + found for found in named]
    assert len(seen) > 15
