"""The plan knows what is done, what is left, and when its estimate is a lower bound."""

import pytest

from tyr.callbacks.plan import Plan
from tyr.events import StageFinished, StageStarted


def finish_dense(plan: Plan, seconds: float = 3.0) -> None:
    plan.start(StageStarted("dense", 1))
    plan.finish(StageFinished("dense", seconds))


def test_an_unmeasured_stage_makes_the_estimate_a_lower_bound() -> None:
    plan = Plan(2, 10)
    finish_dense(plan)
    assert not plan.remaining().complete


def test_measured_steps_are_projected_over_all_iterations() -> None:
    plan = Plan(2, 10)
    finish_dense(plan, 3.0)
    plan.start(StageStarted("supernet", 10, 0))
    for _ in range(10):
        plan.step("", seconds=2.0)
    plan.finish(StageFinished("supernet", 20.0, 0))
    plan.start(StageStarted("search", 5, 0))
    plan.step("", of=(1, 5), seconds=4.0)
    remaining = plan.remaining()
    # 4 generations; supernet and search once more; finish like a supernet; then the uniform model
    # is pruned, and three models are evaluated.
    assert remaining.seconds == pytest.approx(4 * 4 + 10 * 2 + 5 * 4 + 10 * 2 + 10 * 2 + 3 * 3)
    assert remaining.complete


def test_steps_read_back_on_resume_do_not_make_the_estimate_optimistic() -> None:
    plan = Plan(1, 4, resumed=True)
    plan.start(StageStarted("supernet", 4, 0))
    plan.step("")
    plan.step("")
    plan.step("", seconds=5.0)
    assert plan.stages["supernet", 0].done == 3
    assert plan.remaining().seconds == pytest.approx(1 * 5 + 4 * 5)


def test_a_resumed_search_counts_the_generations_before_it() -> None:
    plan = Plan(2, 4, resumed=True)
    plan.start(StageStarted("search", 2, 0))  # two of five are left
    plan.step("", of=(4, 5), seconds=1.0)
    stage = plan.stages["search", 0]
    assert (stage.done, stage.steps) == (4, 5)
    # One generation here, five in the next iteration; nothing else is measured.
    assert plan.remaining().seconds == pytest.approx(1 + 5)


def test_the_dense_stage_of_a_resumed_run_measures_nothing() -> None:
    plan = Plan(0, 4, resumed=True)
    finish_dense(plan, 0.01)
    assert plan.remaining().seconds == 0
    assert not plan.remaining().complete


def test_a_resumed_run_marks_the_stages_it_skipped() -> None:
    plan = Plan(2, 4, resumed=True)
    plan.start(StageStarted("search", 3, 1))
    states = {slot: stage.state for slot, stage in plan.stages.items()}
    assert states["dense", None] == states["search", 0] == states["supernet", 1] == "earlier"
    assert states["search", 1] == "running"
    assert states["finish", None] == "waiting"


def test_a_stage_nobody_planned_is_shown_all_the_same() -> None:
    plan = Plan(0, 4)
    plan.start(StageStarted("finish", 4, label="uniform"))
    assert plan.title(("finish", None)) == "finish (uniform)"
    plan.start(StageStarted("search", 3, 0))
    assert plan.stages["search", 0].state == "running"


def test_nothing_is_left_after_the_last_stage() -> None:
    plan = Plan(0, 4)
    for stage in ("dense", "finish", "export", "evaluation"):
        plan.start(StageStarted(stage, 1))  # type: ignore[arg-type]
        plan.finish(StageFinished(stage, 1.0))  # type: ignore[arg-type]
    assert plan.remaining().seconds == 0
    assert plan.remaining().complete
