"""Who may ask: checked before any route sees a request.

- Host must be a name of this machine: a foreign name that resolves to it (DNS rebinding) gets nothing.
- A request that a web page of another origin makes is refused; opening a link to this server is not.
- With a token, every request must show it: as a bearer token, as the cookie that `?token=` sets, or (for
  WebSockets and links) as `?token=`.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraloom.server.answers import Answer
from loraloom.server.settings import ServerSettings

COOKIE = "loraloom_token"
_HARMLESS = frozenset({"GET", "HEAD"})
_DOOR_POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    message: str


class Security:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = "WEBSOCKET" if scope["type"] == "websocket" else str(scope["method"])
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        refusal = check_host(headers, self._settings) or check_origin(method, headers, self._settings)
        if refusal is None:
            refusal = check_token(headers, query, self._settings)
        if refusal is not None:
            await _refuse(scope, receive, send, refusal)
            return
        if method in _HARMLESS and self._settings.token is not None and "token" in query:
            await _remember(scope, query, self._settings.token)(scope, receive, send)
            return
        await self._app(scope, receive, _hardened(send) if scope["type"] == "http" else send)


def check_host(headers: Mapping[str, str], settings: ServerSettings) -> Refusal | None:
    """Whether the Host header names this machine."""
    host = headers.get("host", "")
    name = _host_name(host)
    if (
        name == "localhost"
        or name in settings.allow_hosts
        or name == settings.listen.lower()
        or _is_address(name)
    ):
        return None
    return Refusal(403, f"this server does not answer to the host name {name[:100]!r}; see --allow-host")


def check_origin(method: str, headers: Mapping[str, str], settings: ServerSettings) -> Refusal | None:
    """Whether a browser sends this request for a page of ours (or for its user)."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    navigates = method in _HARMLESS and headers.get("sec-fetch-mode") == "navigate"
    if navigates and headers.get("sec-fetch-dest") in (None, "document"):
        return None
    if origin is not None:
        ours = origin in settings.allow_origins or _netloc(origin) == headers.get("host", "").lower()
        return None if ours else Refusal(403, f"requests from the origin {origin[:100]!r} are refused")
    if site in ("cross-site", "same-site"):
        return Refusal(403, "requests from pages of other sites are refused")
    return None


def check_token(
    headers: Mapping[str, str], query: Mapping[str, str], settings: ServerSettings
) -> Refusal | None:
    """Whether the request shows the token, when there is one."""
    if settings.token is None:
        return None
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    shown = (
        bearer.strip() if scheme.lower() == "bearer" else "",
        cookie_parser(headers.get("cookie", "")).get(COOKIE, ""),
        query.get("token", ""),
    )
    wanted = settings.token.encode()
    if any(hmac.compare_digest(value.encode("utf-8", "replace"), wanted) for value in shown):
        return None
    return Refusal(
        401, "this server asks for its token: send 'Authorization: Bearer TOKEN', or open /?token=TOKEN"
    )


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None for "null", and for what is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _host_name(host: str) -> str:
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _remember(scope: Scope, query: Mapping[str, str], token: str) -> Response:
    """Put the token into a cookie and the address bar back in order; not an old one that stands there, where
    the right one was shown otherwise."""
    rest = urlencode({name: value for name, value in query.items() if name != "token"})
    path = "/" + str(scope["path"]).lstrip("/\\")
    response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
    return response


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.message[:100]})
        return
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
    if refusal.status == 401 and Headers(scope=scope).get("sec-fetch-mode") == "navigate":
        wrong = b"token=" in scope["query_string"] or COOKIE in Headers(scope=scope).get("cookie", "")
        await HTMLResponse(_door(wrong), 401, {**(headers or {}), **_DOOR_POLICY})(scope, receive, send)
        return
    await Answer({"error": refusal.message}, refusal.status, headers)(scope, receive, send)


def _door(wrong: bool) -> str:
    """A page that asks a person for the token. wrong: another one was shown."""
    said = "That is not this server's token." if wrong else "This server asks for its token."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Token · Loraloom</title><style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 26rem; margin: 14vh auto; padding: 0 1.25rem }}
input, button {{ font: inherit; padding: .5rem .75rem; width: 100%; margin: .25rem 0 .75rem }}
* {{ box-sizing: border-box }}
</style></head><body><main><h1>Loraloom</h1><p role="alert">{said}</p>
<form method="get"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></form>
<p>It is what loraloom serve was started with: --token, or LORALOOM_TOKEN.</p></main></body></html>
"""


def _hardened(send: Send) -> Send:
    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[tuple[bytes, bytes]] = message.setdefault("headers", [])
            names = {name.lower() for name, _ in headers}
            for name, value in (
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
            ):
                if name not in names:
                    headers.append((name, value))
        await send(message)

    return hardened
