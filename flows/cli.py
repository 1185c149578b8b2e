"""The `dgate` command; each subcommand is a module that is imported when it is called."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any

import click

from dgate_core.errors import DgateError, UsageError

COMMANDS = {
    "demo": ("flows.commands.demo", "64 postcards with the starter model, and a gallery"),
    "generate": ("flows.commands.generate", "make the pictures of a manifest"),
    "plan": ("flows.commands.plan", "show what a run would be, and every problem of the manifest"),
    "retry": ("flows.commands.retry", "make the failed rows of a run again, nothing else"),
    "reproduce": ("flows.commands.reproduce", "make a picture again from the file alone"),
    "evaluate": ("flows.commands.evaluate", "measure the pictures of a run"),
    "gate": ("flows.commands.gate", "may this run replace that one: pass, fail, or not decided"),
    "optimize": ("flows.commands.optimize", "quantise a model, and let it serve when it passes the gate"),
    "runs": ("flows.commands.runs", "show and list runs"),
    "track": ("flows.commands.track", "send a run's records to its trackers"),
    "models": ("flows.commands.models", "list the models that are known"),
    "weights": ("flows.commands.weights", "fetch and list the weights that metrics need"),
    "reference": ("flows.commands.reference", "build, list and show reference sets"),
    "suite": ("flows.commands.suite", "list, show and export prompt suites"),
    "export": ("flows.commands.export", "write a run's pictures as GenEval, T2I-CompBench or HPSv2 read them"),
    "serve": ("flows.commands.serve", "pictures on demand: an API in the shapes of OpenAI's, and a page"),
    "keys": ("flows.commands.keys", "who may use the API, for what, how much and until when"),
    "up": ("flows.commands.up", "start a local Prefect server, pool and workers"),
    "bench": ("flows.commands.bench", "measure against plain diffusers"),
}


class LazyGroup(click.Group):
    """Lists its commands without importing them, so that `dgate --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name in the message."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from dgate_core.registry import explain_unknown

            raise explain_unknown("command", name, COMMANDS, UsageError)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="d-gate", prog_name="dgate")
def command() -> None:
    """Pictures in bulk with diffusion models, proved good."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a person's mistake is one message and exit code 2 (usage) or 1, without a traceback.

    Where `--json` was given, the mistake is an object on stdout as well, so that a script always has one to read.
    """
    # Where it is installed, peft imports it, and it complains of a kernel that only 4-bit products on a CPU would use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        result: Any = command.main(args=arguments, prog_name="dgate", standalone_mode=False)
    except click.exceptions.Abort as abort:
        sys.exit(tell_abort(abort.__cause__, as_json=as_json))
    except (click.ClickException, DgateError) as error:
        sys.exit(tell_mistake(error, as_json=as_json))
    sys.exit(result if isinstance(result, int) else 0)


def tell_abort(cause: BaseException | None, *, as_json: bool) -> int:
    """Says how a run goes on that was stopped; returns the exit code."""
    from flows.commands.early_stop import StoppedEarly

    if not isinstance(cause, StoppedEarly):
        return 130
    cause.tell(as_json=as_json)
    return cause.exit_code


def tell_mistake(error: click.ClickException | DgateError, *, as_json: bool) -> int:
    """Says what was wrong on stderr, for programs on stdout too; returns the exit code."""
    if as_json:
        from flows.commands.outcome import print_json_error

        print_json_error(error)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    click.echo(f"error: {error}", err=True)
    return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    main()
