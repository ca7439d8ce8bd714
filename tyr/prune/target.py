"""What the pruned output projection should reproduce: the right-hand side of the least squares.

`self` is the paper's (Eq. 2): match X̂·W on the pruned stream. `corrected` also repairs the error
that the stream inherited from earlier pruning; it is tyr's addition (experiments/DEVIATIONS.md).
Both only build G; the greedy pass is the same.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tyr.calibrate.statistics import Statistics
from tyr.errors import ConfigError
from tyr.linalg import add_to_diagonal, damping_amount
from tyr.prune.progressive import LocalProblem


class Target(Protocol):
    """Turns statistics and a dense weight into a local problem."""

    needs_dense_stream: bool

    def problem(
        self, statistics: Statistics, weight: Tensor, *, damping: float, unit_size: int, name: str
    ) -> LocalProblem:
        """The least-squares problem of one sublayer.

        Args:
            statistics: moments of its features.
            weight: (d_in, C), dense output projection in the paper's orientation.
            damping: ridge as a fraction of the Hessian's mean diagonal.
            unit_size: rows per unit.
            name: sublayer, for messages.
        """


class SelfTarget:
    """The paper's target (Eq. 2): the output of the dense weight on the pruned stream."""

    needs_dense_stream = False

    def problem(
        self, statistics: Statistics, weight: Tensor, *, damping: float, unit_size: int, name: str
    ) -> LocalProblem:
        """See `Target.problem`."""
        wide = weight.to(statistics.hessian.dtype)
        ridge = damping_amount(statistics.hessian, damping)
        hessian = add_to_diagonal(statistics.hessian, ridge)
        return LocalProblem(name, hessian, hessian @ wide, unit_size=unit_size, weight=wide)


class CorrectedTarget:
    """X̂W + α·(X − X̂)W + β·(r − r̂): reproduce (part of) the dense stream's output.

    Args:
        alpha: weight of the feature error inherited from earlier sublayers.
        beta: weight of the residual-stream error. α = β = 1 asks for the dense hidden state.
    """

    needs_dense_stream = True

    def __init__(self, alpha: float = 0.5, beta: float = 0.5) -> None:
        for key, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise ConfigError(f"pruner.target.{key} must be in [0, 1], got {value}")
        self.alpha = alpha
        self.beta = beta

    def problem(
        self, statistics: Statistics, weight: Tensor, *, damping: float, unit_size: int, name: str
    ) -> LocalProblem:
        """See `Target.problem`. The ridge pulls towards the dense weight, not towards zero."""
        if statistics.cross is None or statistics.residual is None:
            raise ValueError(f"{name}: the corrected target needs statistics of the dense stream")
        wide = weight.to(statistics.hessian.dtype)
        ridge = damping_amount(statistics.hessian, damping)
        hessian = add_to_diagonal(statistics.hessian, ridge)
        drift = (statistics.cross - statistics.hessian) @ wide
        gradient = hessian @ wide + self.alpha * drift + self.beta * statistics.residual
        return LocalProblem(name, hessian, gradient, unit_size=unit_size)
