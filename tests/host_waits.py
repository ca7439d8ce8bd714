"""Counts operations for whose values an accelerator would be waited for; seen on the CPU too."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

# Their results are numbers on the host, or have sizes that depend on values. Indexing by a mask
# calls nonzero.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_")


class HostWaits:
    """`counts`: operation to how often it ran within the `with` block, however deep in another."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._profile = profile(activities=[ProfilerActivity.CPU])

    def __enter__(self) -> HostWaits:
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        for event in self._profile.events() or ():
            name = event.name.removeprefix("aten::")
            if name.startswith(WAITING):
                self.counts[name] += 1
