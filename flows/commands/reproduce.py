"""`dgate reproduce`: a picture again, from the file alone."""

from __future__ import annotations

import click


@click.command("reproduce")
@click.argument("file")
@click.option("--out", metavar="FILE", help="Write the new picture here, a path or s3://.")
@click.option("--start", metavar="PICTURE", help="What FILE was made from, if it is an edit: path or s3:// URI.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps or auto.")
def command(file: str, out: str | None, start: str | None, device: str) -> int:
    """Makes the picture of FILE again and says how far it is from it; exit code 3 when it is farther than rounding.

    FILE is a local path or an s3:// URI of a PNG, JPEG or WebP that D-Gate wrote.
    """
    from dgate_core.engine.reproduce import reproduce_picture
    from dgate_core.storage import open_object

    storage, key = open_object(file)
    begun = None
    if start is not None:
        start_storage, start_key = open_object(start)
        begun = start_storage.read_bytes(start_key)
    found = reproduce_picture(storage.read_bytes(key), file, device, begun)
    origin = found.provenance
    click.echo(f"prompt      {escape_controls(origin.prompt)}")
    click.echo(f"model       {escape_controls(origin.model)}, seed {origin.seed}, {escape_controls(origin.precision)}")
    for line in found.other_versions:
        click.echo(f"versions    {line}")
    if found.is_identical:
        click.echo("result      identical, byte for byte")
    else:
        click.echo(
            f"result      differs by at most {found.max_difference}/255, on average {found.mean_difference:.4f}/255"
        )
    if out is not None:
        storage, key = open_object(out)
        storage.write_bytes(key, found.data)
        click.echo(f"written     {out}")
    return 0 if found.mean_difference <= 1.0 else 3


def escape_controls(text: str) -> str:
    """A file's own words on one line, with nothing in them that a terminal would obey."""
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)
