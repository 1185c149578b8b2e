"""`dgate keys`: who may use the API, for what, how much and until when."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgate_core.errors import UsageError

if TYPE_CHECKING:
    from dgate_core.api.key_store import KeyStore
    from dgate_core.api.keys import ApiKey

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_LIMITS = ("requests_per_minute", "pictures_per_day", "concurrent")
_LONGEST_NAME = 100
_file_option = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the keys.  [default: $DGATE_KEYS_FILE, or ~/.config/dgate/keys.json]",
)


@click.group("keys")
def command() -> None:
    """Keys of the API: `dgate serve` asks for one as soon as there is any."""


@command.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["generate", "batch", "metrics", "admin"]),
    help="What it may do; may be repeated, admin may do everything.  [default: generate, batch]",
)
@click.option("--expires", metavar="WHEN", help="90d, 12h, 30m, or a date such as 2027-01-31 (UTC).")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Requests of any kind in any 60 seconds.")
@click.option("--pictures-per-day", type=click.IntRange(1), help="Pictures in any 24 hours, batches included.")
@click.option("--concurrent", type=click.IntRange(1), help="Requests in hand at a time.")
@_file_option
def create(name: str, scopes: tuple[str, ...], expires: str | None, path: Path | None, **limits: int | None) -> None:
    """Makes a key called NAME and shows it, once: only its hash is kept."""
    from dataclasses import replace

    from dgate_core.api.keys import KeyLimits, make_key

    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise UsageError(f"the name {name[:_LONGEST_NAME]!r}", f"1 to {_LONGEST_NAME} printable characters")
    now = time.time()
    secret, key = make_key(name, scopes or ("generate", "batch"), now)  # type: ignore[arg-type]
    expires_at = parse_expiry(expires, now) if expires else None
    store = open_store(path)
    store.add(replace(key, expires_at=expires_at, limits=KeyLimits(**limits)))
    click.echo(secret)
    click.echo(f"This is the only time that {name} is shown; {store.path} keeps its hash.", err=True)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Everything but the hashes, for programs.")
@_file_option
def list_keys(as_json: bool, path: Path | None) -> None:
    """All keys, also expired and revoked ones; never the keys themselves."""
    keys, now = list(open_store(path).read().values()), time.time()
    if as_json:
        shown = [{**key.to_dict(), "state": key.find_state(now)} for key in keys]
        click.echo(json.dumps([{name: each[name] for name in each if name != "sha256"} for each in shown], indent=2))
        return
    if not keys:
        click.echo("There are no keys: `dgate serve` is open, to this machine only. Make one: dgate keys create NAME")
    for key in keys:
        click.echo("  ".join(describe_key(key, now)))


@command.command("revoke")
@click.argument("key")
@_file_option
def revoke(key: str, path: Path | None) -> None:
    """Revokes the KEY of this id or name, at once and for good; running servers see it at their next request."""
    revoked = open_store(path).revoke(key, time.time())
    click.echo(f"{revoked.name} ({revoked.id}) is revoked.")


def open_store(path: Path | None) -> KeyStore:
    """At that path, or at the usual one."""
    from dgate_core.api.key_store import KeyStore, default_keys_file

    return KeyStore(path or default_keys_file())


def describe_key(key: ApiKey, now: float) -> list[str]:
    """The columns of a line."""
    limits: dict[str, Any] = {name: getattr(key.limits, name) for name in _LIMITS}
    told = ", ".join(f"{name}={value:,}" for name, value in limits.items() if value is not None)
    expiry = "never expires" if key.expires_at is None else f"expires {_format_time(key.expires_at)}"
    return [key.id, f"{key.find_state(now):7}", f"{key.name:20}", ",".join(key.scopes), expiry, told or "no limits"]


def parse_expiry(text: str, now: float) -> float:
    """`90d`, `12h`, `30m` from now, or a date or time of ISO 8601 in UTC, as POSIX seconds.

    Raises:
        UsageError: it is neither, or in the past.
    """
    if match := re.fullmatch(r"(\d{1,6})([mhd])", text):
        moment = now + int(match[1]) * _UNITS[match[2]]
    else:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError as error:
            raise UsageError(f"--expires {text}", "90d, 12h, 30m, or a date such as 2027-01-31") from error
        moment = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if moment <= now:
        raise UsageError(f"--expires {text}: that has passed", "a time to come")
    return moment


def _format_time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
