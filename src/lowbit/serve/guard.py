"""Who may ask: the Host header, browsers' origins, keys."""

from __future__ import annotations

import hmac
import ipaddress
import urllib.parse

from .http import Call
from .problems import Problem
from .settings import Settings

# Written with capitals, as nearly all servers do: some clients look for them so.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, "
    "anthropic-dangerous-direct-browser-access",
    "Access-Control-Max-Age": "600",
}


def _is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def who_reaches(settings: Settings) -> str:
    """Return for people who can reach the server."""
    if all(map(_is_loopback, settings.host_names)):
        return "this machine only"
    return "OPEN TO THE NETWORK" + ("" if settings.api_keys else ", WITHOUT A KEY")


def check_host(call: Call, settings: Settings) -> None:
    """Refuse a name that is not ours: a page elsewhere may have made its own name lead here.

    An address in numbers cannot be made to lead here by anybody.
    """
    if len([name for name, _ in call.scope["headers"] if name.lower() == b"host"]) != 1:
        raise Problem(400, "the Host header is missing, or there are several", code="host")
    host = call.headers["host"].strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name in ("localhost", *map(str.lower, settings.host_names)) or name in settings.hosts or "*" in settings.hosts:
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise Problem(403, "this host name is not served here; see --allow-host", code="host") from None


def check_key(call: Call, settings: Settings) -> None:
    """Refuse a request without one of the keys."""
    if not settings.api_keys:
        return
    scheme, _, bearer = call.headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else call.headers.get("x-api-key", "")
    found = False
    for key in settings.api_keys:  # all of them, each in the same time
        found |= hmac.compare_digest(given.encode("latin-1"), key.encode("utf-8"))
    if not found:
        raise Problem(401, "the API key is missing or wrong", code="invalid_api_key",
                      headers={"www-authenticate": "Bearer"})  # fmt: skip


def cors_headers(call: Call, settings: Settings, preflight: bool) -> dict[str, str]:
    """Return the headers that let a page of a named origin read the answer."""
    origin = call.headers.get("origin")
    if not settings.cors or origin is None:
        return {}
    named = "*" in settings.cors or origin in settings.cors or ("localhost" in settings.cors and _is_local(origin))
    if not named:
        return {"vary": "Origin"}
    allowed = {"Access-Control-Allow-Origin": origin, "vary": "Origin"}
    return {**allowed, **_PREFLIGHT} if preflight else allowed


def _is_local(origin: str) -> bool:
    """Whether an origin is a page of this machine, at any port."""
    try:
        parts = urllib.parse.urlsplit(origin)
        whole = f"{parts.scheme}://{parts.netloc}" == origin and parts.port != 0  # which raises for what is no number
    except ValueError:
        return False
    return whole and parts.scheme in ("http", "https") and _is_loopback(parts.hostname or "")
