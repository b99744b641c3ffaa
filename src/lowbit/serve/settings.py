"""What the server was told when it was started."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Limits and names; all times in seconds."""

    version: str = "lowbit"
    """Name and version of this program, as answers tell it."""
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    """One of them must come with each request, if there is any."""
    hosts: tuple[str, ...] = ()
    """Names, beside localhost and plain addresses, under which a browser may reach the server."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may read answers; ``*`` is any."""
    aliases: tuple[str, ...] = ()
    """Names of the model beside its own, the first in place of it; ``*`` is any."""
    chat_template: str | None = None
    """Name of a built-in template, or a file with a Jinja template."""
    pooling: str = "last"
    reasoning: bool | None = None
    """Whether answers begin with thoughts, where requests do not say; None is as the template has it."""
    today: str | None = None
    """The date that templates are told, as ``2026-01-31``; None is the clock's."""
    tags: tuple[str, ...] = ()
    """Words that describe the model in the list of models."""
    page: bool = True
    slots: bool = True
    metrics: bool = True
    """Whether there are these paths."""
    show_prompts: bool = False
    """Whether chat completions return their prompts, where requests do not say."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Settings of requests that do not say otherwise."""
    max_sequences: int = 16
    max_queue: int = 256
    kv_ram: str | None = None
    step_ms: float = 50.0
    batch: int | None = None
    """Most tokens that are read in a step."""
    max_body: int = 8 << 20
    """Bytes of a request."""
    body_seconds: float = 30.0
    """For a request to arrive."""
    write_seconds: float = 60.0
    """For a client that does not read."""
    request_seconds: float = 3600.0
    """For an answer."""
    ping_seconds: float = 10.0
    """Between two comments that keep a stream alive."""
    grace_seconds: float = 10.0
    """For answers to end when the server is told to stop."""
    log_requests: bool = False

    @property
    def host_names(self) -> list[str]:
        """Where it listens."""
        return [name.strip() for name in self.host.split(",")]

    @property
    def max_calls(self) -> int:
        """Requests whose bodies are held at a time."""
        return self.max_sequences + self.max_queue + 64
