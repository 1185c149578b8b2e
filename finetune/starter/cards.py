"""Model cards from the measured figures: `python -m finetune.starter.cards --models DIR`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

BARS = {"one_seen": "95 %", "one_held_out": "85 %", "two": "75 %"}
GROUP_NAMES = {
    "one_seen": "one object, seen pairs",
    "one_held_out": "one object, held-out pairs",
    "two": "two objects",
    "three": "three objects",
    "other_phrasing": "one or two objects, held-out phrasings",
}
ATTRIBUTES = ("all_right", "objects", "colours", "count", "ground", "sky", "places", "sizes", "poses")


def write_cards(models: Path, figures: Mapping[str, Any]) -> None:
    """Writes README.md into the folders of starter-unet, starter-clip and judge.

    Args:
        models: Folder of the three.
        figures: What `evaluate` wrote; `training` is one sentence about the budget that the weights had.
    """
    for name in ("starter-unet", "starter-clip", "judge"):
        write_card(models / name, figures)


def write_card(folder: Path, figures: Mapping[str, Any]) -> None:
    """Writes README.md into a model's folder, from the template of its name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
        autoescape=False,
    )
    pictures = sum(int(group["pictures"]) for group in figures["generated"].values())
    shared = {"bars": BARS, "group_names": GROUP_NAMES, "attributes": ATTRIBUTES, "percent": format_share}
    text = environment.get_template(f"{folder.name}.md").render(
        {"training": "", **figures, **shared, "pictures": pictures}
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def format_share(share: float | None) -> str:
    """0.954 as `95.4 %`; nothing where nothing was asked."""
    return "" if share is None else f"{share:.1%}".replace("%", " %")


def main() -> None:
    """Writes the cards of a folder of models that were evaluated, or with --pipeline the card of one pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--pipeline", help="starter-dit, whose figures are in starter-dit.json")
    given = parser.parse_args()
    figures = json.loads((given.models / f"{given.pipeline or 'figures'}.json").read_text(encoding="utf-8"))
    if given.pipeline:
        write_card(given.models / given.pipeline, figures)
    else:
        write_cards(given.models, figures)


if __name__ == "__main__":
    main()
