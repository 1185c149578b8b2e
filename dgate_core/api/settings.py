"""What a person can say about the API server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dgate_core.errors import ConfigError
from dgate_core.runs.spec import Determinism, SafetyPolicy

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def default_folder() -> str:
    """`dgate/api` in the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return str(Path(base) / "dgate" / "api")


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings of the server; the first group determines pixels."""

    models: tuple[str, ...] = ("starter-unet",)
    """Served, under these names and no others: catalogue names, aliases, paths, NAME=PATH; the first is the default."""
    determinism: Determinism = "fast"
    """`strict` gives byte-equal pictures in any batch."""
    strict_batch_size: int = 8
    """Samples in the padded batch of `strict`."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` takes what the device does fastest."""
    profile: str = "exact"
    """What may be given for speed: exact, fast, turbo, draft, small, or a backend's name."""

    host: str = "127.0.0.1"
    """Address to bind; without API keys only loopback."""
    port: int = 8000
    """0 takes a free one."""
    public_url: str = ""
    """Where clients reach the server, for the addresses in answers; empty takes it from each request."""
    folder: str = field(default_factory=default_folder)
    """Files, batches and their runs; a path or s3://."""

    device: str = "auto"
    """cpu, cuda, mps or auto."""
    devices: int | None = None
    """GPUs to use, a thread and a copy of the models each; None is all of them. Without GPUs, such threads on the CPU;
    None is one."""
    batch_size: int | None = None
    """Rows per batch at most; None finds the best."""
    model_bytes: int | None = None
    """Memory for the weights of warm models; None is a share of the device's."""
    follow_seconds: float = 5.0
    """How often aliases such as `production` are looked at; a moved one is loaded beside the old and then served."""

    queue_limit: int = 256
    """Pictures that may wait; more are refused with 429."""
    gather_ms: float = 2.0
    """How long a first request waits for others of its batch key."""
    steps_limit: int = 250
    """Most denoising steps of a request; bulk runs allow more."""
    timeout_seconds: float = 600.0
    """After this a request is given up: 504."""
    drain_seconds: float = 120.0
    """After SIGTERM, the longest wait for work in hand."""
    notice_seconds: float = 0.0
    """After SIGTERM, how long /readyz is red before the port closes, for load balancers."""

    picture_bytes: int = 256 << 20
    """Memory for pictures behind urls; the oldest go first."""
    picture_seconds: float = 3600.0
    """How long a picture's url lasts."""
    upload_bytes: int = 200 << 20
    """Largest file."""

    keys_file: str = ""
    """API keys; empty takes $DGATE_KEYS_FILE, or `dgate/keys.json` in the user's configuration folder."""
    metrics_open: bool = False
    """/metrics without a key, also where keys are asked for: for a port that only Prometheus and friends can reach."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts from which pictures of requests may be fetched, `*.example.org` with all below it; none by default."""
    safety: str | None = None
    """Who looks at every picture, also of batches: `opennsfw`, or `module:function`; None lets all pass."""
    safety_policy: SafetyPolicy = "quarantine"
    """keep, blur, drop or quarantine those that are flagged."""
    safety_threshold: float = 0.5
    """Score from which a picture is flagged, 0 to 1."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no model to serve", "at least one", "give --model NAME")
        least = {"queue_limit": 1, "devices": 1, "gather_ms": 0, "timeout_seconds": 0.001, "drain_seconds": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name}={value}", f"{name} of at least {low}")
        if not 0 <= self.safety_threshold <= 1:
            raise ConfigError(f"safety_threshold={self.safety_threshold}", "safety_threshold from 0 to 1")
