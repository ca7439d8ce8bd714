"""Counts operations for whose values an accelerator would be waited for; seen on the CPU too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Their results are numbers on the host, or have sizes that depend on values.
WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique")


class HostWaits(TorchDispatchMode):
    """`counts`: operation to how often it was called while the `with` block ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = str(function)
        by_mask = name.startswith("aten.index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for indices in args[1:]
            if isinstance(indices, list | tuple)
            for index in indices
        )
        if by_mask or name.startswith(WAITING):
            self.counts["mask" if by_mask else name.split(".")[1]] += 1
        return function(*args, **(kwargs or {}))
