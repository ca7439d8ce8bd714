"""The stages of a run as its user sees them, how far each is, and how long the rest will take.

Four things happen: dense evaluation; prune to supernet and search, once per iteration; finish;
evaluate and export. The remaining time is measured step durations times the steps still to come; a
stage whose like has not run yet counts nothing, and the estimate then says it is a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tyr.events import StageFinished, StageName, StageStarted

Slot = tuple[StageName, int | None]

TITLES: dict[str, str] = {
    "dense": "dense evaluation",
    "supernet": "prune to supernet",
    "search": "search",
    "finish": "finish",
    "export": "export",
    "evaluation": "evaluate",
}
EVALUATED_MODELS = 3  # tyr, uniform and the other way to finish, each as long as dense was


@dataclass
class Progressed:
    """How far one stage is; `seconds` of this process."""

    steps: int
    done: int = 0
    state: str = "waiting"  # waiting, earlier (in a process before), running, done
    seconds: float = 0.0
    detail: str = ""
    label: str = ""


@dataclass(frozen=True)
class Remaining:
    """Seconds to go; `complete` is false when a stage to come could not be estimated."""

    seconds: float
    complete: bool


class Plan:
    """Where a run is.

    Args:
        iterations: prune-and-search rounds; 0 for a run without a search.
        num_sublayers: sublayers of the model, the steps of a supernet pass.
        resumed: whether stages that never start were finished by an earlier process.
    """

    def __init__(self, iterations: int, num_sublayers: int, *, resumed: bool = False) -> None:
        self.iterations, self._num_sublayers, self._resumed = iterations, num_sublayers, resumed
        self.stages: dict[Slot, Progressed] = {s: Progressed(0) for s in _slots(iterations)}
        self.current: Slot | None = None
        self._step_seconds: dict[StageName, list[float]] = {}
        self._steps: dict[StageName, int] = {"supernet": num_sublayers, "finish": num_sublayers}

    def start(self, event: StageStarted) -> None:
        """A stage begins; in a resumed run those waiting before it were done earlier."""
        slot: Slot = (event.stage, event.iteration)
        if self._resumed and slot in self.stages:
            for earlier in list(self.stages)[: list(self.stages).index(slot)]:
                if self.stages[earlier].state == "waiting":
                    self.stages[earlier].state = "earlier"
        seconds = self.stages[slot].seconds if slot in self.stages else 0.0
        label = event.label
        self.stages[slot] = Progressed(event.steps, 0, "running", seconds, label=label)
        self.current = slot
        self._steps[event.stage] = event.steps

    def step(
        self, detail: str, *, of: tuple[int, int] | None = None, seconds: float | None = None
    ) -> None:
        """One step of the current stage is done.

        Args:
            detail: what the user reads beside the bar.
            of: (steps done, steps in all) where the step itself knows, because a resumed search
                announces only the generations it has left; otherwise steps are counted.
            seconds: the step's duration; None when it was read back and took no time.
        """
        if self.current is None:
            return
        stage = self.stages[self.current]
        stage.done, stage.steps = of or (stage.done + 1, stage.steps)
        stage.detail = detail
        self._steps[self.current[0]] = stage.steps
        if seconds is not None:
            self._step_seconds.setdefault(self.current[0], []).append(seconds)

    def note(self, detail: str) -> None:
        """Something for the user to read beside the current stage's bar; no step is done."""
        if self.current is not None:
            self.stages[self.current].detail = detail

    def finish(self, event: StageFinished) -> None:
        """A stage ended."""
        stage = self.stages.setdefault((event.stage, event.iteration), Progressed(1))
        stage.state, stage.seconds = "done", stage.seconds + event.seconds
        # A resumed run only reads the dense model's numbers, which says nothing about evaluating.
        if event.stage == "dense" and not self._resumed:
            self._step_seconds["dense"] = [event.seconds]
        self.current = None

    @property
    def counts_sublayers(self) -> bool:
        """Whether the steps of the current stage are sublayers."""
        return self.current is not None and self.current[0] in ("supernet", "finish")

    def title(self, slot: Slot) -> str:
        """`iteration 2/4, search`."""
        stage, iteration = slot
        title = TITLES.get(stage, stage)
        if label := self.stages[slot].label:
            title = f"{title} ({label})"
        return (
            title if iteration is None else f"iteration {iteration + 1}/{self.iterations}, {title}"
        )

    def remaining(self) -> Remaining:
        """What is left of the current stage and of those still waiting."""
        seconds, complete = 0.0, True
        # A copy: the live display asks from its refresh thread while stages may be added.
        for slot, stage in list(self.stages.items()):
            if stage.state not in ("waiting", "running"):
                continue
            estimate = self._estimate(slot[0], stage)
            seconds += estimate or 0.0
            complete = complete and estimate is not None
        return Remaining(seconds, complete)

    def _estimate(self, name: StageName, stage: Progressed) -> float | None:
        """Seconds left of a stage; None when nothing like it has been measured."""
        mean = self._mean(name)
        if name == "export":
            return 0.0  # writes once what is already there
        if stage.state == "running":
            return None if mean is None else (stage.steps - stage.done) * mean
        pruning = self._mean("supernet")
        if name == "finish" and mean is None:
            mean = pruning  # a finishing pass goes through the sublayers as a supernet does
        if name == "evaluation":  # the uniform model is pruned first, then both are measured
            dense = self._mean("dense")
            if dense is None or pruning is None:
                return None
            return self._num_sublayers * pruning + EVALUATED_MODELS * dense
        return None if mean is None else self._steps.get(name, 1) * mean

    def _mean(self, name: StageName) -> float | None:
        measured = self._step_seconds.get(name)
        return sum(measured) / len(measured) if measured else None


def _slots(iterations: int) -> Iterator[Slot]:
    yield "dense", None
    for iteration in range(iterations):
        yield "supernet", iteration
        yield "search", iteration
    yield "finish", None
    yield "evaluation", None
    yield "export", None
