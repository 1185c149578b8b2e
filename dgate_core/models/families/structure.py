"""Do a checkpoint's weights fit its configs? Modules are built without memory, tensors are known from headers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from dgate_core.models.checkpoint_folder import read_json
from dgate_core.models.checkpoint_size import list_weight_files
from dgate_core.models.families.loading import strip_wrappers
from dgate_core.models.single_file import read_header

_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Of the decoder's attention in files from before diffusers 0.12, which the library renames as it loads them."""

Shapes = dict[str, tuple[int, ...]]


def find_misfits(folder: Path) -> list[str]:
    """What is wrong between configs and weights, one sentence for each part; empty when all fits.

    Args:
        folder: A diffusers folder whose files are whole.
    """
    index = read_json(folder / "model_index.json")
    problems = []
    for part, kind in index.items():
        if isinstance(kind, list) and kind[0] and list_weight_files(folder / part):
            problems += _compare_part(folder / part, *kind)
    return problems


def _compare_part(folder: Path, library: str, class_name: str) -> list[str]:
    module_class = getattr(diffusers if library == "diffusers" else transformers, class_name, None)
    if module_class is None:
        return [f"{folder.name}: the installed {library} has no {class_name}"]
    try:
        wanted = _list_wanted(module_class, folder)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        return [f"{folder.name}/config.json does not build a {class_name}: {' '.join(str(error).split())[:200]}"]
    stored: Shapes = {}
    for file in list_weight_files(folder):
        stored |= {_name_today(name): tuple(entry["shape"]) for name, entry in read_header(file).items()}
    missing = sorted(wanted.keys() - stored.keys())
    if missing:
        return [f"{folder.name}: the weights lack {missing[0]} ({len(missing)} tensors in all)"]
    others = [name for name, shape in wanted.items() if stored[name] != shape]
    if others:
        told = f"{others[0]} is {list(stored[others[0]])}, the config wants {list(wanted[others[0]])}"
        return [f"{folder.name}: {told} ({len(others)} tensors in all)"]
    return []


def _list_wanted(module_class: Any, folder: Path) -> Shapes:
    config = read_json(folder / "config.json")
    with torch.device("meta"):
        if issubclass(module_class, transformers.PreTrainedModel):
            module = module_class(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))
        else:
            accepted = inspect.signature(module_class.__init__).parameters
            module = module_class(**{name: value for name, value in config.items() if name in accepted})
    parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
    return {strip_wrappers(name): tuple(tensor.shape) for name, tensor in parameters.items()}


def _name_today(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return strip_wrappers(name)
