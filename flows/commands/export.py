"""`dgate export`: a run's pictures where another benchmark reads them."""

from __future__ import annotations

import click


@click.command("export")
@click.argument("run")
@click.option("--layout", required=True, metavar="L", help="geneval, t2i-compbench or hpsv2.")
@click.option("--out", required=True, metavar="DIR", help="An empty or new folder, a path or s3://.")
@click.option("--style", metavar="S", help="hpsv2: the style of all rows, when the manifest has no column `style`.")
@click.option("--allow-missing", is_flag=True, help="Leave out pictures that the run has not, where the tool can.")
def command(run: str, layout: str, out: str, style: str | None, allow_missing: bool) -> None:
    """Writes the pictures of RUN in the layout that GenEval, T2I-CompBench or HPSv2 reads."""
    from dgate_core.evaluation.exporters.export import ExportOptions, export_run

    done = export_run(run, layout, out, ExportOptions(allow_missing, style))
    click.echo(f"{done.pictures:,} of {done.expected:,} pictures into {done.out}")
    if done.missing:
        click.echo(f"{done.missing:,} are missing and not counted by the tool", err=True)
    if done.left_out:
        click.echo(f"{done.left_out:,} left out: the tool reads one picture a prompt", err=True)
    for warning in done.warnings:
        click.echo(warning, err=True)
    click.echo(f"next: {done.command}")
