"""API keys. On disk stands only the hash of each; the key itself is shown once, when it is made.

The keys are random and long, so a plain SHA-256 of them cannot be guessed backwards.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path

PREFIX = "echat-"
SECRET_PREFIX = "ek_"
MOST_SECRETS = 10_000


@dataclass(frozen=True)
class Key:
    """One key as it is stored."""

    id: str
    hash: str  # SHA-256, hexadecimal
    created: int  # seconds since 1970
    expires: int | None = None
    note: str = ""

    def is_valid(self, now: float) -> bool:
        return self.expires is None or now < self.expires


class Keys:
    """The keys of a file, read again when the file changes, and short-lived secrets made from them."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._keys: list[Key] = []
        self._stamp: tuple[int, int] | None = None
        self._secrets: dict[str, Key] = {}
        self._sessions: dict[str, dict[str, Any]] = {}

    @property
    def are_asked_for(self) -> bool:
        """Does anybody need a key?"""
        return self.path is not None

    def find(self, given: str | None) -> Key | None:
        """The valid key that was given; None where there is none. Every stored hash is compared, each in
        constant time, so that time tells nothing."""
        wanted, now, found = digest(given or ""), time.time(), None
        for key in (*self._stored(), *self._secrets.values()):
            if hmac.compare_digest(key.hash, wanted) and key.is_valid(now):
                found = key
        return found

    def new_secret(self, seconds: int, session: dict[str, Any]) -> tuple[str, Key]:
        """A secret for a browser, valid for so long, and the session it will open."""
        now = time.time()
        self._secrets = {id_: key for id_, key in self._secrets.items() if key.is_valid(now)}
        while len(self._secrets) >= MOST_SECRETS:  # the oldest goes
            del self._secrets[next(iter(self._secrets))]
        secret, key = _new_key(SECRET_PREFIX, int(now), int(now) + seconds, "client secret")
        self._secrets[key.id] = key
        self._sessions = {id_: self._sessions[id_] for id_ in self._secrets if id_ in self._sessions}
        self._sessions[key.id] = session
        return secret, key

    def session_of(self, key: Key | None) -> dict[str, Any]:
        """What a secret was made for."""
        return self._sessions.get(key.id, {}) if key is not None else {}

    def add(self, days: float | None = None, note: str = "") -> tuple[str, Key]:
        """A new key in the file, and the words to give to its user."""
        now = int(time.time())
        secret, key = _new_key(PREFIX, now, None if days is None else now + int(days * 86400), note)
        self._write([*self._stored(), key])
        return secret, key

    def remove(self, key_id: str) -> None:
        """Take a key out of the file."""
        left = [key for key in self._stored() if key.id != key_id]
        if len(left) == len(self._keys):
            known = ", ".join(key.id for key in self._keys) or "none"
            raise ValueError(f"{self.path}: expected the id of a key ({known}), found {key_id!r}")
        self._write(left)

    def all(self) -> list[Key]:
        """What stands in the file."""
        return list(self._stored())

    def _stored(self) -> list[Key]:
        if self.path is None or not self.path.is_file():
            self._keys, self._stamp = [], None
            return self._keys
        status = self.path.stat()
        if (stamp := (status.st_mtime_ns, status.st_size)) != self._stamp:
            self._keys, self._stamp = _read(self.path), stamp
        return self._keys

    def _write(self, keys: list[Key]) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text("".join(json.dumps(asdict(key)) + "\n" for key in keys), encoding="utf-8")
        self._stamp = None


def digest(secret: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _new_key(prefix: str, created: int, expires: int | None, note: str) -> tuple[str, Key]:
    secret = prefix + secrets.token_urlsafe(32)
    return secret, Key(f"key_{secrets.token_hex(4)}", digest(secret), created, expires, note)


def _read(path: Path) -> list[Key]:
    keys = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            keys.append(Key(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a key as `echat keys add` writes it, found another line; "
                "remove it"
            ) from error
    return keys
