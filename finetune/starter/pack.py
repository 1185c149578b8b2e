"""Packs trained models into few pieces of limited size, for a machine that gives back few and small files."""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MODELS: Final = ("starter-unet", "starter-dit", "starter-clip", "judge")
PIECE_BYTES: Final = 16 * 2**20 - 2**16
_LOOSE: Final = ("figures.json", "sheet.png", "starter-dit.json", "starter-dit.png", "log.txt")


def pack_models(models: Path, folder: Path, names: Sequence[str] = MODELS) -> list[Path]:
    """Writes models.tar.00, .01, ... (together one tar) and the loose files; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            if (models / name).is_dir():
                archive.add(models / name, arcname=name, filter=_skip_partial)
    data = stream.getvalue()
    written = []
    for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
        piece = folder / f"models.tar.{number:02d}"
        piece.write_bytes(data[start : start + PIECE_BYTES])
        written.append(piece)
    return written + [Path(shutil.copy2(models / name, folder)) for name in _LOOSE if (models / name).exists()]


def _skip_partial(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if ".partial" in member.name else member


def unpack_models(folder: Path, models: Path) -> None:
    """Puts the pieces of `folder` together again."""
    data = b"".join(piece.read_bytes() for piece in sorted(folder.glob("models.tar.*")))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(models, filter="data")


def main() -> None:
    """Packs, or unpacks with --unpack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--pack", type=Path, help="folder for the pieces")
    parser.add_argument("--unpack", type=Path, help="folder with the pieces")
    given = parser.parse_args()
    if given.unpack:
        unpack_models(given.unpack, given.models)
    if given.pack:
        pack_models(given.models, given.pack)


if __name__ == "__main__":
    main()
