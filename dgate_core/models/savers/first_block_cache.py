"""First-block cache: where a transformer's first block changes little from step to step, the others' work is reused.

After ParaAttention's First Block Cache (Cheng 2024), which follows TeaCache (Liu et al. 2024). There one decision holds
for a whole batch; here each picture has its own, so that what a picture shows does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dgate_core.errors import ModelError

_LISTS = ("transformer_blocks", "single_transformer_blocks")
_BY_ROW = (
    *("temb", "temb_mod", "temb_mod_img", "temb_mod_txt", "timestep"),
    *("attention_mask", "encoder_attention_mask", "encoder_hidden_states_mask"),
)
"""Arguments of a block that have a row for each sample, besides the states themselves."""


class CachedBlocks(nn.ModuleList):
    """A transformer's blocks; during a batch its forward walks over calls through the cache.

    The blocks themselves, their names and their parameters stay as they are, so that what compiles, quantises or
    adapts them sees no difference.
    """

    def __init__(self, blocks: nn.ModuleList, cache: FirstBlockCache, first: int) -> None:
        super().__init__(blocks)
        self._cache, self._first = cache, first

    def __iter__(self) -> Iterator[Any]:
        blocks = super().__iter__()
        if not self._cache.is_active:
            return blocks
        return (partial(self._cache.call, self._first + place, block) for place, block in enumerate(blocks))


class FirstBlockCache:
    """Decides after the first block, for each picture, whether the other blocks are computed.

    Args:
        transformer: Its blocks take and give the picture's states, alone or behind the text's.
        threshold: Mean change of the first block's residual since the last computed step, as a share of its mean.
        together: Compute every picture when one needs it, each still by its own decision: needed where the
            size of the batch must not change (strict determinism).
        pattern: Instead of the threshold, which steps are computed, over and over: random weights decide nothing.

    Raises:
        ModelError: the transformer has no such blocks.
    """

    def __init__(
        self, transformer: Any, threshold: float, *, together: bool = False, pattern: Sequence[bool] = ()
    ) -> None:
        self.transformer, self.threshold = transformer, threshold
        self.together, self.pattern = together, tuple(pattern)
        self.computed = self.seen = 0
        self.is_active = False
        self._pictures, self._step, self._last = 1, 0, 0
        self._previous: torch.Tensor | None = None
        self._tail: torch.Tensor | None = None
        self._head: torch.Tensor = torch.empty(0)
        self._rows: torch.Tensor | None = None
        self._skips = self._is_joint = False
        self._words = 0

    @property
    def name(self) -> str:
        """See `StepSaver`."""
        how = f"{sum(self.pattern)}-of-{len(self.pattern)}" if self.pattern else f"{self.threshold:g}"
        return f"first-block-{how}"

    def install(self) -> None:
        """Puts `CachedBlocks` in the place of the transformer's lists."""
        found = {name: getattr(self.transformer, name, None) for name in _LISTS}
        lists = {name: blocks for name, blocks in found.items() if isinstance(blocks, nn.ModuleList)}
        if sum(map(len, lists.values())) < 2:
            raise ModelError(
                f"the first-block cache does not know {type(self.transformer).__name__}",
                f"a transformer with {_LISTS[0]}",
                "choose a profile without it",
            )
        first = 0
        for name, blocks in lists.items():
            setattr(self.transformer, name, CachedBlocks(blocks, self, first))
            first += len(blocks)
        self._last = first - 1

    @property
    def share_computed(self) -> float:
        """Of the steps of all pictures so far, 0 to 1."""
        return self.computed / self.seen if self.seen else 1.0

    def begin_batch(self, pictures: int) -> None:
        """See `StepSaver`."""
        self._pictures, self._step, self.is_active = pictures, 0, True
        self._previous = self._tail = None

    def end_batch(self) -> None:
        """See `StepSaver`."""
        self.is_active = False
        self._previous = self._tail = self._rows = None
        self._head = torch.empty(0)

    def call(self, place: int, block: Any, *states: torch.Tensor, **arguments: Any) -> Any:
        """One block of one step: the first decides, the last brings old and new together."""
        if place == 0:
            return self._call_first(block, states, arguments)
        # Flux.2's later blocks take text and picture in one sequence, the text first.
        is_one = self._is_joint and arguments.get("encoder_hidden_states") is None
        if self._skips:
            hidden = _find_hidden(states, arguments)
            return (arguments["encoder_hidden_states"], hidden) if self._is_joint and not is_one else hidden
        output = block(*states, **self._take_rows(arguments))
        if place != self._last:
            return output
        if not is_one:
            return _replace_hidden(output, self._merge(_hidden_of(output)))
        merged = self._merge(output[:, self._words :])
        # Nobody reads the text behind the last block.
        return torch.cat([merged.new_zeros(len(merged), self._words, merged.shape[-1]), merged], dim=1)

    def _call_first(self, block: Any, states: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Any:
        output = block(*states, **arguments)
        head, self._is_joint = _hidden_of(output), isinstance(output, tuple)
        self._words = output[0].shape[1] if self._is_joint else 0
        change = head - _find_hidden(states, arguments)
        wanted = self._choose(change)
        self._step += 1
        self._head, self._skips = head, not bool(wanted.any())
        self.seen, self.computed = self.seen + self._pictures, self.computed + int(wanted[: self._pictures].sum())
        if self._skips:
            assert self._tail is not None
            return _replace_hidden(output, head + self._tail)
        self._rows = None if bool(wanted.all()) else wanted.nonzero().flatten().to(head.device)
        self._remember(change)
        if self._rows is None or self.together:
            return output
        return tuple(each[self._rows] for each in output) if isinstance(output, tuple) else output[self._rows]

    def _choose(self, change: torch.Tensor) -> torch.Tensor:
        """bool (rows,) on the CPU; with guidance both samples of a picture go the same way."""
        rows = len(change)
        if self._previous is None:
            return torch.ones(rows, dtype=torch.bool)
        self._previous, tail = self._previous[-rows:], self._tail
        self._tail = tail[-rows:] if tail is not None else None
        if self.pattern:
            return torch.full([rows], self.pattern[self._step % len(self.pattern)])
        moved, size = (
            each.abs().flatten(1).mean(1, dtype=torch.float32).reshape(-1, self._pictures).mean(0)
            for each in (change - self._previous, self._previous)
        )
        return (moved > self.threshold * size).cpu().repeat(rows // self._pictures)

    def _remember(self, change: torch.Tensor) -> None:
        if self._rows is None or self._previous is None:
            self._previous = change
        else:
            self._previous = self._previous.index_copy(0, self._rows, change[self._rows])

    def _take_rows(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._rows is None or self.together:
            return arguments
        # Text that flows from block to block was taken after the first one.
        names = _BY_ROW if self._is_joint else (*_BY_ROW, "encoder_hidden_states")
        taken = {name: arguments[name][self._rows] for name in names if arguments.get(name) is not None}
        return {**arguments, **taken}

    def _merge(self, hidden: torch.Tensor) -> torch.Tensor:
        """States of all rows: computed ones as they are, the others from the first block and the old residual."""
        if self._rows is None or self._tail is None:
            self._tail = hidden - self._head
            return hidden
        fresh = hidden[self._rows] if self.together else hidden
        merged = (self._head + self._tail).index_copy(0, self._rows, fresh)
        self._tail = self._tail.index_copy(0, self._rows, fresh - self._head[self._rows])
        return merged


def _find_hidden(states: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = states[0] if states else arguments["hidden_states"]
    return hidden


def _hidden_of(output: Any) -> torch.Tensor:
    """A block gives the picture's states, or the text's and the picture's."""
    hidden: torch.Tensor = output[1] if isinstance(output, tuple) else output
    return hidden


def _replace_hidden(output: Any, hidden: torch.Tensor) -> Any:
    return (output[0], hidden) if isinstance(output, tuple) else hidden
