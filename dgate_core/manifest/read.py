"""Opens a manifest: one file, several, or a folder, in any of the formats, read in batches that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dgate_core.errors import ManifestError
from dgate_core.manifest.columns import KNOWN_COLUMNS, warn_lookalikes
from dgate_core.manifest.comma_rows import CommaReader
from dgate_core.manifest.extras import merge_extras, settle_type
from dgate_core.manifest.json_lines import JsonLinesReader
from dgate_core.manifest.parquet_rows import ParquetReader
from dgate_core.manifest.rows import FileFacts, RowBatch, RowReader
from dgate_core.manifest.source import DAMAGED, Format, Source, find_sources, join_hashes
from dgate_core.runs.record import name_manifest_column

_READERS: dict[Format, RowReader] = {"jsonl": JsonLinesReader(), "csv": CommaReader(), "parquet": ParquetReader()}


@dataclass(frozen=True, slots=True)
class Manifest:
    """Files that were looked through once and can be read as often as needed."""

    sources: tuple[Source, ...]
    """The files, in the order of reading."""
    facts: tuple[FileFacts, ...]
    """What was found in each."""
    sha256: str
    """Of all contents in order, whatever the files' names; of a single file its own."""
    extras: dict[str, pa.DataType | None]
    """Unknown columns, which travel through; None is JSON text."""
    warnings: tuple[str, ...]
    """What is odd but does not stop anything."""

    @property
    def format(self) -> Format:
        """Format of all files."""
        return self.sources[0].format

    @property
    def is_batch_api(self) -> bool:
        """Whether the lines are requests of the OpenAI Batch API."""
        return self.facts[0].is_batch_api

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns in order of appearance."""
        return tuple(dict.fromkeys(name for facts in self.facts for name in facts.columns))

    @property
    def own_fields(self) -> list[pa.Field]:
        """The unknown columns as they stand in the plan and in the results."""
        return [pa.field(name_manifest_column(name), settle_type(kind)) for name, kind in self.extras.items()]

    def read_batches(self) -> Iterator[RowBatch]:
        """Yield all rows in order, numbered through.

        Raises:
            ManifestError: a file turns out to be damaged, or was changed since it was opened.
        """
        position = 0
        for source, facts in zip(self.sources, self.facts, strict=True):
            try:
                for batch in _READERS[source.format].read(source, facts, self.extras):
                    batch.first_position = position
                    position += batch.rows
                    yield batch
            except (pa.ArrowException, *DAMAGED) as error:
                raise ManifestError(
                    f"{source.name}: the file cannot be read: {error}",
                    "a whole file",
                    "write it again, or copy it again",
                ) from error


def open_manifest(uris: Sequence[str]) -> Manifest:
    """Find a manifest's files and look through them: hash, columns, types.

    Args:
        uris: Files or folders (read in the order of their names), local or s3://, all of one format.

    Raises:
        ManifestError: names everything that is wrong with whole files at once.
        StorageError: storage refuses or does not answer.
    """
    sources, trouble = find_sources(uris)
    facts = [_READERS[source.format].scan(source) for source in sources]
    trouble += [
        f"{source.name}: {text}" for source, found in zip(sources, facts, strict=True) for text in found.trouble
    ]
    trouble += _check_columns(sources, facts)
    if trouble:
        raise _refuse(trouble)
    extras: dict[str, pa.DataType | None] = {}
    for found in facts:
        extras = merge_extras(extras, found.extras)
    sha256 = join_hashes([found.sha256 for found in facts])
    return Manifest(tuple(sources), tuple(facts), sha256, extras, tuple(warn_lookalikes(extras)))


def _check_columns(sources: list[Source], facts: list[FileFacts]) -> list[str]:
    """Columns that stop everything: no prompt, two kinds of lines, a name that would stand in the plan twice."""
    readable = [(source, found) for source, found in zip(sources, facts, strict=True) if not found.trouble]
    trouble = [_explain_no_prompt(source, found) for source, found in readable if "prompt" not in found.columns]
    kinds = {found.is_batch_api: source.name for source, found in readable}
    if len(kinds) > 1:
        trouble.append(f"two formats mixed: {kinds[True]} holds Batch API requests and {kinds[False]} does not")
    names = {name for _, found in readable for name in found.columns if name not in KNOWN_COLUMNS}
    doubled = sorted(
        name for name in names if name_manifest_column(name) != name and name_manifest_column(name) in names
    )
    return trouble + [
        f"the columns {name} and {name_manifest_column(name)} cannot stand beside each other" for name in doubled
    ]


def _explain_no_prompt(source: Source, facts: FileFacts) -> str:
    if len(facts.columns) == 1 and (found := [mark for mark in ";\t|" if mark in facts.columns[0]]):
        return f"{source.name}: the header is {facts.columns[0]!r}; separate its columns by commas, not by {found[0]!r}"
    likely = [name for name in facts.columns if "`prompt`" in "".join(warn_lookalikes([name]))]
    hint = f"; rename {likely[0]!r} to 'prompt'" if likely else ""
    return f"{source.name}: there is no column 'prompt', only {', '.join(map(repr, facts.columns))}{hint}"


def _refuse(trouble: list[str]) -> ManifestError:
    return ManifestError(
        trouble[0] if len(trouble) == 1 else "\n  ".join([f"{len(trouble)} problems with the manifest:", *trouble]),
        "Parquet, JSONL, CSV or OpenAI Batch JSONL with a column 'prompt'",
        "mend the files, then give the same command again",
    )
