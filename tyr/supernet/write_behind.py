"""Write behind: a sublayer's file is written and hashed while the next one is being solved.

Prune-to-supernet (Algorithm 2) would else stand still for every file. One sublayer is on its way at
a time, so memory holds the structures of two. What is on disk at any moment is what the store
itself guarantees: the manifest names finished files only. An error surfaces at the next write, or
when the writer is closed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from tyr.errors import StoreError
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId
from tyr.supernet.store import SupernetStore

logger = logging.getLogger(__name__)


class WriteBehind:
    """A store's writer on a thread of its own; use it in a `with` statement.

    Leaving the statement waits for the last file, also when an error or an interrupt ends it.

    Args:
        store: where to; nobody else may write to it meanwhile.
    """

    def __init__(self, store: SupernetStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="supernet-writer")
        self._under_way: Future[None] | None = None

    def write(
        self,
        sublayer: SublayerId,
        structures: Mapping[int, Structure],
        errors: Mapping[int, float],
    ) -> None:
        """Begin to store a sublayer, after the one before it is on disk.

        The sublayer is in the store once this is done; the tensors must not change until then.

        Args:
            sublayer: whose.
            structures: level to structure, tensors on the CPU.
            errors: level to relative reconstruction error.

        Raises:
            StoreError: the sublayer before this one could not be written.
        """
        self._settle()
        self._under_way = self._thread.submit(self._store.write, sublayer, structures, errors)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the last file.

        Raises:
            StoreError: it could not be written; said in the log instead where another error is
                already on its way.
        """
        try:
            self._settle()
        except StoreError as failed:
            if error is None:
                raise
            logger.error("%s", failed)
        finally:
            self._thread.shutdown()

    def _settle(self) -> None:
        """Wait for the file under way and raise what went wrong with it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
