"""Layer-synchronous evaluation of a population of candidates.

All candidates go through sublayer 0, then 1, and so on. Candidates that agree on every level so far
share one hidden state (a trie, kept as its current frontier), so each distinct prefix is computed
once; each (sublayer, level) weight is read and sliced once, while the one before it computes;
states at the same level run as one batch. The losses are those of one-by-one evaluation up to
rounding. Only two structures and the frontier's hidden states are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from tyr.devices import pins_memory
from tyr.errors import NumericsError
from tyr.memory import return_freed
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Context, SlicedWeights, Structure, Sublayer
from tyr.search.kept import StructureSource
from tyr.search.mutation import Levels
from tyr.search.objective import Objective, Reference
from tyr.search.selection import Sample

# An edge of the trie: index of a state in the frontier, and the level it takes next.
Edge = tuple[int, int]


@dataclass
class Frontier:
    """The distinct states that candidates have reached.

    Args:
        hidden: per state (N, T, C); None once every edge out of it has been taken.
        losses: per state, objective terms collected on the way.
        owners: per candidate, the index of its state.
    """

    hidden: list[Tensor | None]
    losses: list[float]
    owners: list[int]


@dataclass(frozen=True)
class PopulationLosses:
    """Losses of a population and what they cost.

    Args:
        losses: one per candidate, in order.
        sublayer_evaluations: distinct trie nodes computed.
    """

    losses: list[float]
    sublayer_evaluations: int


class PopulationEvaluator:
    """Evaluates level vectors on samples of the search text.

    Args:
        decoder: the dense model.
        store: the supernet, or what is kept of it.
        objective: what to minimise.
        reference: search text and teacher states.
        batch_tokens: most positions in one forward call.
        compute_dtype: of sublayers and logits; residual stream, norms and teacher keep the
            decoder's. Default: all in the decoder's.
    """

    def __init__(
        self,
        decoder: Decoder,
        store: StructureSource,
        *,
        objective: Objective,
        reference: Reference,
        batch_tokens: int = 8192,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self._decoder = decoder
        self._store = store
        self._objective = objective
        self._reference = reference
        self._batch_tokens = batch_tokens
        self._dtype = compute_dtype or decoder.dtype
        self._head = decoder.head.to(self._dtype)
        self._observed = set(objective.observed_blocks(decoder.units.num_blocks))

    @property
    def num_sequences(self) -> int:
        """Sequences of the search text."""
        return len(self._reference.tokens)

    @property
    def length(self) -> int:
        """Positions per sequence."""
        return self._reference.tokens.shape[1]

    @torch.no_grad()
    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        """Loss of every candidate on the sample.

        Args:
            candidates: level vectors in stream order; duplicates cost nothing.
            sample: positions of the search text.

        Raises:
            NumericsError: the loss of a candidate is NaN or infinite.
        """
        reference = self._reference.sample(sample.rows, sample.length)
        context = self._decoder.context(sample.length)
        frontier = Frontier([self._decoder.embed(reference.tokens)], [0.0], [0] * len(candidates))
        evaluations = 0
        with closing(self._structures(candidates)) as coming:
            for sublayer in self._decoder.sublayers:
                levels = [candidate[sublayer.id.index] for candidate in candidates]
                edges: dict[Edge, int] = {}
                steps = zip(frontier.owners, levels, strict=True)
                owners = [edges.setdefault(edge, len(edges)) for edge in steps]
                frontier = self._advance(sublayer, frontier, list(edges), coming, context)
                frontier.owners = owners
                evaluations += len(edges)
                self._observe(sublayer, frontier, reference)
        losses = self._final_losses(frontier, reference)
        return_freed()
        return PopulationLosses([losses[owner] for owner in frontier.owners], evaluations)

    def _structures(
        self, candidates: Sequence[Levels]
    ) -> Generator[dict[int, Structure], None, None]:
        """Structures in the order of use: sublayer by sublayer, each level that a candidate has."""
        requests = [
            (sublayer.id, [level])
            for sublayer in self._decoder.sublayers
            for level in sorted({candidate[sublayer.id.index] for candidate in candidates})
        ]
        return self._store.read_ahead(requests, pin=pins_memory(self._decoder.device))

    def _advance(
        self,
        sublayer: Sublayer,
        frontier: Frontier,
        edges: list[Edge],
        structures: Iterator[dict[int, Structure]],
        context: Context,
    ) -> Frontier:
        """Take every edge, level by level; the last edge out of a state takes its memory over."""
        waiting = Counter(state for state, _ in edges)
        moved: list[Tensor | None] = [None] * len(edges)
        for level in sorted({level for _, level in edges}):
            sliced = sublayer.slice(next(structures)[level], self._dtype)
            chosen = [i for i, (_, edge_level) in enumerate(edges) if edge_level == level]
            for index in chosen:
                state = edges[index][0]
                hidden = _present(frontier.hidden[state])
                waiting[state] -= 1
                if waiting[state] == 0:
                    frontier.hidden[state] = None
                moved[index] = hidden.clone() if waiting[state] else hidden
            self._forward(sublayer, [_present(moved[i]) for i in chosen], context, sliced)
        return Frontier(moved, [frontier.losses[state] for state, _ in edges], [])

    def _forward(
        self, sublayer: Sublayer, states: list[Tensor], context: Context, sliced: SlicedWeights
    ) -> None:
        """Take equally shaped states through a sublayer, in place, `batch_tokens` at a time."""
        count, length = states[0].shape[:2]
        most = max(1, self._batch_tokens // length)  # sequences in a batch
        parts = [part for state in states for part in state.split(most)]
        together = max(1, most // count)
        for start in range(0, len(parts), together):
            _pass(sublayer, parts[start : start + together], context, sliced)

    def _observe(self, sublayer: Sublayer, frontier: Frontier, reference: Reference) -> None:
        block = sublayer.id.block
        if sublayer.id.kind == "ffn" and block in self._observed:
            for index, state in enumerate(frontier.hidden):
                loss = self._objective.path_loss(block, _present(state), reference)
                frontier.losses[index] += loss

    def _final_losses(self, frontier: Frontier, reference: Reference) -> list[float]:
        states: list[Tensor] = []
        while frontier.hidden:  # a normed state takes the place of the one it is made of
            states.append(self._decoder.final_norm(_present(frontier.hidden.pop(0))))
        final = self._objective.final_losses(states, reference, self._head)
        losses = [path + end for path, end in zip(frontier.losses, final, strict=True)]
        bad = [index for index, loss in enumerate(losses) if not abs(loss) < float("inf")]
        if bad:
            raise NumericsError(
                f"the loss of {len(bad)} of {len(losses)} candidates is NaN or infinite; compute "
                f"in more precision (model.compute_dtype=float32) or raise pruner.damping"
            )
        return losses


def _present(state: Tensor | None) -> Tensor:
    if state is None:
        raise RuntimeError("a state of the trie was freed before its last use")
    return state


def _pass(sublayer: Sublayer, parts: list[Tensor], context: Context, sliced: SlicedWeights) -> None:
    """Take states through a sublayer as one batch, in place; each (n, T, C)."""
    inputs = parts[0] if len(parts) == 1 else torch.cat(parts)
    added = sublayer.branch(inputs, context, sliced)
    if added is None:
        return
    for part, change in zip(parts, added.split([len(part) for part in parts]), strict=True):
        part.add_(change)
