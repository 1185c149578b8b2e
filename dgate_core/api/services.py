"""The parts that the routes work with, put together in one place so that tests may put in others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fastapi import APIRouter, Request

from dgate_core.api.batch_desk import BatchDesk
from dgate_core.api.batch_runner import BatchRunner, ProcessRunner
from dgate_core.api.batch_store import BatchStore
from dgate_core.api.contract import Admission, Gatekeeper, NoTelemetry, OpenDoor, PictureInspector, Telemetry
from dgate_core.api.file_store import FileStore
from dgate_core.api.image_engine import ImageEngine
from dgate_core.api.picture_store import PictureStore
from dgate_core.api.request_rows import RowMaker
from dgate_core.api.safety_inspector import open_inspector
from dgate_core.api.served_models import ServedModels, split_name
from dgate_core.api.settings import ApiSettings
from dgate_core.engine.begin import resolve_precision
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.spec import GenerationDefaults, RunSpec, SafetySpec
from dgate_core.storage import open_storage


@dataclass(slots=True)
class Readiness:
    """What /readyz says."""

    is_warm: bool = False
    """The models are loaded, as far as they fit."""
    is_draining: bool = False
    """The server has been told to end."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What others may put into a server."""

    gatekeeper: Gatekeeper = field(default_factory=OpenDoor)
    telemetry: Telemetry = field(default_factory=NoTelemetry)
    inspector: PictureInspector | None = None
    runner: BatchRunner | None = None
    """Carries batches out; None takes a process of their own."""
    routers: tuple[APIRouter, ...] = ()
    """More routes, such as /metrics."""


@dataclass(frozen=True, slots=True)
class Services:
    """All that a server has."""

    settings: ApiSettings
    engine: ImageEngine
    models: ServedModels
    rows: RowMaker
    pictures: PictureStore
    files: FileStore
    batches: BatchDesk
    readiness: Readiness = field(default_factory=Readiness)
    parts: Parts = field(default_factory=Parts)


def open_services(settings: ApiSettings, parts: Parts | None = None) -> Services:
    """Puts a server together; nothing is loaded and no thread runs before its application starts.

    Raises:
        ModelError: a model is not known or not whole.
        StorageError: the folder cannot be used.
        UsageError: there is no such safety checker.
    """
    parts = parts or Parts()
    precision = resolve_precision(RunSettings(precision=settings.precision, device=settings.device))
    _, default = split_name(settings.models[0])
    spec = RunSpec(GenerationDefaults(model=default), 0, settings.determinism, settings.strict_batch_size, precision)
    spec = replace(spec, profile=settings.profile)
    storage = open_storage(settings.folder)
    safety = SafetySpec(settings.safety, settings.safety_policy, settings.safety_threshold) if settings.safety else None
    parts = replace(parts, inspector=parts.inspector or open_inspector(safety, storage.child("quarantine")))
    engine = ImageEngine(settings, spec, parts.telemetry, parts.inspector)
    models = ServedModels(settings.models, engine.warm)
    files = FileStore(storage.child("files"), settings.upload_bytes)
    runs = RunSettings(
        default,
        determinism=settings.determinism,
        strict_batch_size=settings.strict_batch_size,
        precision=precision,
        profile=settings.profile,
        device=settings.device,
        safety=settings.safety,
        safety_policy=settings.safety_policy,
        safety_threshold=settings.safety_threshold,
    )
    desk = BatchDesk(BatchStore(storage), files, models, parts.runner or ProcessRunner(), runs)
    pictures = PictureStore(settings.picture_bytes, settings.picture_seconds)
    rows = RowMaker(spec, models, settings.steps_limit)
    return Services(settings, engine, models, rows, pictures, files, desk, parts=parts)


async def find_services(request: Request) -> Services:
    """Of the application that got the request; for FastAPI's Depends, which would ask a plain function in a thread."""
    services: Services = request.app.state.services
    return services


async def find_admission(request: Request) -> Admission:
    """Who was let in; for FastAPI's Depends."""
    admission: Admission = request.state.admission
    return admission
