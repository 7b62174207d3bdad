"""What a server allows: `Settings`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gem_rag.errors import InputError

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """What a server allows.

    Attributes:
        api_keys: Keys, one of which a request must bear; none lets everybody in.
        allowed_hosts: Names that requests may call the server by, without ports. Empty for any,
            which lets web pages of strangers reach a server on loopback by DNS rebinding.
        allowed_origins: Origins of web pages, besides the server's own, that may call it (CORS).
        max_body_bytes: Most bytes of a request.
        max_inputs: Most texts, documents or files in one request.
        max_tokens: Most tokens that a request may ask to be generated; None for the context's.
        max_running: Most requests that are answered at once.
        max_waiting: Most that wait for their turn; those beyond are sent away.
        timeout: Most seconds for a request, its waiting included.

    Raises:
        InputError: A number is below 1, or a key could not stand in a header.
    """

    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 64 << 20
    max_inputs: int = 16_384
    max_tokens: int | None = None
    max_running: int = 64
    max_waiting: int = 256
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_inputs", "max_tokens", "max_running", "timeout"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.max_waiting < 0:
            raise InputError(f"max_waiting must be 0 or more, not {self.max_waiting}")
        if not all(
            key.isascii() and key.isprintable() and " " not in key and key for key in self.api_keys
        ):
            raise InputError("an API key is made of one or more ASCII characters without spaces")


def hosts_for(host: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a server bound to an address may be called by: any, unless some are named or
    the address is a loopback one, which only this machine's programs reach."""
    if allowed:
        return (*allowed, *_LOCAL_NAMES)
    return _LOCAL_NAMES if is_loopback(host) else ()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
