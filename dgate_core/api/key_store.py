"""The file of API keys: readable for its owner alone, whole or not at all, seen anew when it changes."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dgate_core.api.keys import ApiKey, dict_to_key
from dgate_core.errors import ConfigError, UsageError

FILE_VARIABLE = "DGATE_KEYS_FILE"
FORMAT = 1
_MOST_BYTES = 16 << 20


def default_keys_file() -> Path:
    """$DGATE_KEYS_FILE, or `dgate/keys.json` in the user's configuration folder."""
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dgate" / "keys.json"


class KeyStore:
    """Keys in one file; may be read while other processes change it.

    Args:
        path: The file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: Mapping[str, ApiKey] = {}

    def read(self) -> Mapping[str, ApiKey]:
        """All keys by id, also expired and revoked ones; parsed anew only when the file is another.

        Raises:
            ConfigError: it is no file of keys, or others may write it.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, {}
            return self._keys
        version = (found.st_mtime_ns, found.st_size, found.st_ino)
        if version != self._seen:
            self._keys, self._seen = self._parse(found), version
        return self._keys

    def add(self, key: ApiKey) -> None:
        """Raises UsageError when an active key has the name."""
        with self._change() as keys:
            if any(each.name == key.name and each.revoked_at is None for each in keys.values()):
                raise UsageError(
                    f"there is a key named {key.name!r}", "a new name", "revoke the old one, or name another"
                )
            keys[key.id] = key

    def revoke(self, wanted: str, now: float) -> ApiKey:
        """Revokes the key of this id or name; raises UsageError when there is none that is not revoked."""
        with self._change() as keys:
            found = [key for key in keys.values() if wanted in {key.id, key.name} and key.revoked_at is None]
            if not found:
                raise UsageError(f"no key {wanted!r} to revoke", "the id or name of a key", "see `dgate keys list`")
            revoked = replace(found[0], revoked_at=now)
            keys[revoked.id] = revoked
        return revoked

    def _parse(self, found: os.stat_result) -> dict[str, ApiKey]:
        # Reading gives away nothing that opens a door, for hashes of random keys cannot be turned back; writing would.
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"others may write {self.path}", "mode 0600", f"run: chmod 600 {self.path}")
        try:
            if found.st_size > _MOST_BYTES:
                raise ValueError(f"it holds {found.st_size:,} bytes")
            data = json.loads(self.path.read_bytes())
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}, not {FORMAT}")
            return {key.id: key for key in map(dict_to_key, data["keys"])}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{self.path} cannot be read as API keys: {type(error).__name__}: {error}",
                "a file that `dgate keys create` wrote",
                "bring back a copy, or move it away and make new keys",
            ) from error

    @contextmanager
    def _change(self) -> Iterator[dict[str, ApiKey]]:
        """Hands out the keys, and writes them back; one process at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _open_lock(self.path.with_name(f".{self.path.name}.lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = dict(self.read())
            yield keys
            self._write(keys)

    def _write(self, keys: Mapping[str, ApiKey]) -> None:
        text = json.dumps({"format": FORMAT, "keys": [key.to_dict() for key in keys.values()]}, indent=2) + "\n"
        descriptor, draft = tempfile.mkstemp(dir=self.path.parent, prefix=".keys-")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(draft).replace(self.path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise


@contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
