"""Lets requests in by their API keys."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dgate_core.api.contract import Admission, Gatekeeper, OpenDoor, RequestFacts, spend_freely
from dgate_core.api.errors import ApiError
from dgate_core.api.key_store import KeyStore, default_keys_file
from dgate_core.api.keys import ApiKey, find_key
from dgate_core.api.quotas import Quotas, open_quotas
from dgate_core.errors import ConfigError

logger = logging.getLogger(__name__)


class KeyDoor:
    """Asks for `Authorization: Bearer KEY`; keys that are made or revoked meanwhile count from the next request on.

    Args:
        store: The keys.
        quotas: Count what they use.
        clock: POSIX seconds.
    """

    is_open = False

    def __init__(self, store: KeyStore, quotas: Quotas, clock: Callable[[], float] = time.time) -> None:
        self._store, self._quotas, self._clock = store, quotas, clock

    async def admit(self, facts: RequestFacts) -> Admission:
        """See `Gatekeeper`; 503 when the keys or the counts cannot be read."""
        key = self._identify(facts.authorization)
        if not key.may(facts.scope):
            message = f"this key may {' and '.join(key.scopes) or 'nothing'}; {facts.scope} is needed here"
            raise ApiError(403, message, "insufficient_scope")
        await self._quotas.take_request(key)
        release = await self._quotas.enter(key)
        is_limited = key.limits.pictures_per_day is not None
        spend = partial(self._quotas.take_pictures, key) if is_limited else spend_freely
        return Admission(key.id, key.id, frozenset(key.scopes), spend, release)

    def _identify(self, authorization: str) -> ApiKey:
        """The key that was shown, if it opens anything; messages never repeat what was sent."""
        kind, _, secret = authorization.partition(" ")
        if not authorization:
            raise ApiError(401, "no API key: send the header Authorization: Bearer KEY", "missing_api_key")
        try:
            key = find_key(secret.strip() if kind.lower() == "bearer" else "", self._store.read())
        except ConfigError as error:
            logger.error("nobody is let in: %s", error.got)
            raise ApiError(503, "the API keys cannot be read", "keys_unavailable", None, 5.0) from error
        if key is None:
            raise ApiError(401, "wrong API key: see `dgate keys create`", "invalid_api_key")
        if (state := key.find_state(self._clock())) != "active":
            raise ApiError(401, f"this API key is {state}", f"{state}_api_key")
        return key


class KeylessDoor:
    """Lets all of this machine in until there is a key; from then on, and for good, it asks for keys.

    Args:
        store: The keys; none yet.
        quotas: Count what keys will use.
    """

    def __init__(self, store: KeyStore, quotas: Quotas) -> None:
        self.is_open = True
        self._store = store
        self._open, self._locked = OpenDoor(), KeyDoor(store, quotas)

    async def admit(self, facts: RequestFacts) -> Admission:
        """See `Gatekeeper`."""
        self.is_open = self.is_open and not self._has_keys()
        return await (self._open if self.is_open else self._locked).admit(facts)

    def _has_keys(self) -> bool:
        """Also when the file cannot be read: then there is one, and nobody may come in."""
        try:
            return bool(self._store.read())
        except ConfigError:
            return True


def open_gatekeeper(path: str = "") -> Gatekeeper:
    """A door with keys where there is a file with any, be they revoked; else one for this machine, until there is.

    Args:
        path: The file; empty is `default_keys_file()`.

    Raises:
        ConfigError: the file cannot be read as keys.
    """
    store = KeyStore(Path(path) if path else default_keys_file())
    return KeyDoor(store, open_quotas()) if store.read() else KeylessDoor(store, open_quotas())
