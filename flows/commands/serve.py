"""`dgate serve`: pictures on demand, and batches, in the shapes of OpenAI's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dgate_core.api.batch_runner import BatchRunner
    from dgate_core.api.settings import ApiSettings


@click.command("serve")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]M",
    help="Served; may be repeated, the first is the default: catalogue name, alias, folder, file.",
)
@click.option("--host", help="Address to bind; without API keys only loopback.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free one.  [default: 8000]")
@click.option("--folder", metavar="DIR", help="Files, batches and their runs.  [default: ~/.local/share/dgate/api]")
@click.option(
    "--batches",
    type=click.Choice(["local", "work_pool"]),
    default="local",
    show_default=True,
    help="Where batches run: a process beside the server, or the flow generate_images on its work pool.",
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, may be repeated.")
@click.option("--config", "config_file", metavar="FILE", help="YAML file with settings; options win over it.")
def command(batches: str, **options: Any) -> None:
    """Starts the API; Ctrl-C and SIGTERM finish what was accepted, then end it."""
    from dgate_core.api.admission import open_gatekeeper
    from dgate_core.api.metrics_routes import make_metrics_router, watch_pools
    from dgate_core.api.server import describe_address, make_server, open_listener, serve
    from dgate_core.api.services import Parts, open_services
    from dgate_core.telemetry.server import open_telemetry

    show_messages()
    settings = gather_settings(options)
    telemetry = open_telemetry()
    parts = Parts(
        gatekeeper=open_gatekeeper(settings.keys_file),
        telemetry=telemetry,
        runner=choose_runner(batches),
        routers=(make_metrics_router(telemetry.metrics),),
    )
    services = open_services(settings, parts)
    watch_pools(telemetry.metrics, services)
    server, listener = make_server(settings, services), open_listener(settings)
    click.echo(describe_server(describe_address(listener), settings, is_open=services.parts.gatekeeper.is_open))
    try:
        serve(server, listener)
    finally:
        telemetry.close()


def gather_settings(options: dict[str, Any]) -> ApiSettings:
    """The config file, then --set, then the named options.

    Raises:
        ConfigError: an unknown key or an impossible value.
    """
    from dgate_core.api.settings import ApiSettings
    from dgate_core.config import build_settings, parse_assignments, read_config

    values: dict[str, Any] = read_config(options["config_file"]) if options["config_file"] else {}
    values |= parse_assignments(options["assignments"])
    values |= {name: options[name] for name in ("models", "host", "port", "folder") if options[name]}
    if options["port"] == 0:
        values["port"] = 0
    return build_settings(ApiSettings, values)


def choose_runner(batches: str) -> BatchRunner | None:
    """None takes a process beside the server."""
    if batches == "local":
        return None
    from tasks.serve import PoolRunner

    return PoolRunner()


def show_messages() -> None:
    """Warnings of libraries and all of D-Gate's on stderr: text on a terminal, else JSON, with the request's id."""
    from dgate_core.api.frame import REQUEST_ID
    from dgate_core.telemetry.logs import LogOptions, set_up_logs

    set_up_logs(LogOptions(read_fields=lambda: {"request_id": REQUEST_ID.get()}))


def describe_server(address: str, settings: ApiSettings, *, is_open: bool) -> str:
    """What a person does next."""
    example = (
        f"curl {address}/v1/images/generations -H 'content-type: application/json' "
        """-d '{"prompt": "a red circle on a beach", "response_format": "url"}'"""
    )
    door = "no API keys: only this machine can reach it" if is_open else "API keys are asked for"
    return "\n".join(
        [
            f"D-Gate serves {', '.join(settings.models)} at {address} ({door}). Ctrl-C stops it.",
            f"  in a browser     {address}/ and {address}/docs",
            f"  from a terminal  {example}",
            f"  for OpenAI's SDK OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY=none",
        ]
    )
