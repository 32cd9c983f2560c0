"""API keys and short-lived client secrets. Only hashes are stored; a key is shown once, when it is created.

Keys are long and random, so a plain SHA-256 needs no salt.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path

PREFIX = "echat-"
SECRET_PREFIX = "ek_"
MAX_SECRETS = 10_000
MAX_DAYS = 36_500
LATEST = 2**37  # seconds since 1970, within the range of `datetime`
_HASH = re.compile("[0-9a-f]{64}")

log = logging.getLogger("echat.serve")


@dataclass(frozen=True)
class Key:
    """One key as it is stored."""

    id: str
    hash: str  # SHA-256, hexadecimal
    created: int  # seconds since 1970
    expires: int | None = None
    note: str = ""

    @property
    def owner(self) -> str:
        """The name under which its use is counted."""
        return self.id

    def is_valid(self, now: float) -> bool:
        return self.expires is None or now < self.expires


@dataclass(frozen=True)
class Secret(Key):
    """A short-lived key for a browser. It opens realtime sessions and nothing else, and is revoked together
    with its parent key."""

    parent: Key | None = None  # None: the server needs no keys
    session: str = "{}"  # JSON: changes to a session's defaults
    maker: str = ""  # key or address that requested it

    @property
    def owner(self) -> str:
        return self.parent.id if self.parent is not None else self.maker


class Keys:
    """The keys of a file, reloaded when the file changes, and client secrets made with them."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lines: list[tuple[str, Key | None]] = []  # of the file; None: a line without a key
        self._stamp: tuple[int, int] | None = None
        self._secrets: dict[str, Secret] = {}

    @property
    def are_required(self) -> bool:
        """Do requests need a key?"""
        return self.path is not None

    def find(self, given: str | None) -> Key | None:
        """The valid key with this secret, or None. All stored hashes are compared, each in constant time,
        against timing attacks."""
        wanted, now, found = digest(given or ""), time.time(), None
        stored = self.all()
        for key in (*stored, *self._secrets.values()):
            if hmac.compare_digest(key.hash, wanted) and key.is_valid(now):
                found = key
        if isinstance(found, Secret) and found.parent is not None:
            return found if found.parent in stored and found.parent.is_valid(now) else None
        return found

    def new_secret(
        self, seconds: int, session: str, parent: Key | None, maker: str, most: int
    ) -> tuple[str, Secret]:
        """Create a client secret that is valid for some seconds, for a `session` (JSON). `maker` has at most
        `most` secrets; the oldest is dropped."""
        now = int(time.time())
        expires = now + seconds
        if parent is not None and parent.expires is not None:
            expires = min(expires, parent.expires)
        words, key = _new_key(SECRET_PREFIX, now, expires, "client secret")
        self._drop_secrets(now, maker, most)
        self._secrets[key.id] = Secret(**asdict(key), parent=parent, session=session, maker=maker)
        return words, self._secrets[key.id]

    def _drop_secrets(self, now: float, maker: str, most: int) -> None:
        self._secrets = {id_: key for id_, key in self._secrets.items() if key.is_valid(now)}
        own = [id_ for id_, key in self._secrets.items() if key.maker == maker]
        too_many = [*own[: len(own) + 1 - most], *list(self._secrets)[: len(self._secrets) + 1 - MAX_SECRETS]]
        for id_ in set(too_many):
            del self._secrets[id_]

    def session_of(self, key: Key | None) -> dict[str, Any]:
        """The session settings of a client secret; none of other keys."""
        return dict(json.loads(key.session)) if isinstance(key, Secret) else {}

    def add(self, days: float | None = None, note: str = "") -> tuple[str, Key]:
        """Add a key to the file; returns the secret for its user, and the key."""
        if days is not None and not abs(days) <= MAX_DAYS:
            raise ValueError(
                f"--days: expected at most {MAX_DAYS}, found {days:g}; without it a key never expires"
            )
        now = int(time.time())
        secret, key = _new_key(PREFIX, now, None if days is None else now + int(days * 86400), note)
        self.all()
        self._write([*(line for line, _ in self._lines), json.dumps(asdict(key))])
        return secret, key

    def remove(self, key_id: str) -> None:
        """Remove a key from the file."""
        known = [key.id for key in self.all()]
        if key_id not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"{self.path}: expected the id of a key ({listed}), found {key_id!r}")
        self._write([line for line, key in self._lines if key is None or key.id != key_id])

    def all(self) -> list[Key]:
        """The keys of the file."""
        if self.path is None or not self.path.is_file():
            self._lines, self._stamp = [], None
            return []
        status = self.path.stat()
        if (stamp := (status.st_mtime_ns, status.st_size)) != self._stamp:
            self._lines, self._stamp = _read(self.path), stamp
        return [key for _, key in self._lines if key is not None]

    def _write(self, lines: list[str]) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self._stamp = None


def digest(secret: str) -> str:
    """The stored hash of a secret."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _new_key(prefix: str, created: int, expires: int | None, note: str) -> tuple[str, Key]:
    secret = prefix + secrets.token_urlsafe(32)
    return secret, Key(f"key_{secrets.token_hex(4)}", digest(secret), created, expires, note)


def _read(path: Path) -> list[tuple[str, Key | None]]:
    """The lines of a file and their keys. An invalid line is logged and skipped; the other keys stay
    valid."""
    found: list[tuple[str, Key | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        key = _key_of(line)
        if key is None and line.strip():
            expected = "expected a key as `echat keys add` writes it, found another line; remove it"
            log.warning("%s, line %d: %s", path, number, expected)
        found.append((line, key))
    return found


def _key_of(line: str) -> Key | None:
    try:
        key = Key(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts, times = (key.id, key.hash, key.note), (key.created, 0 if key.expires is None else key.expires)
    is_whole = all(isinstance(one, str) for one in texts) and _HASH.fullmatch(key.hash) is not None
    return key if is_whole and all(type(one) is int and abs(one) <= LATEST for one in times) else None
