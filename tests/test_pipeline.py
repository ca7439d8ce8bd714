"""Algorithm 4 whole, on a small model: exact budgets, and continuing after any interruption."""

from __future__ import annotations

import hashlib
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.data.text import numbered
from tests.full_disk import largest_file
from tests.tiny import HEAD_SIZE, save_random_model
from tyr import events, pipeline
from tyr.callbacks.tracking import CsvMetrics
from tyr.data import TextFileData
from tyr.errors import ResumeError, StoreError
from tyr.evaluate.perplexity import PerplexityEvaluator
from tyr.export.checkpoint import HuggingFaceExport
from tyr.launch import Job, launch
from tyr.model.loading import PretrainedModel
from tyr.pipeline import Method
from tyr.prune.criterion import SecondOrder, Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.target import CorrectedTarget, SelfTarget
from tyr.search.archive import KeepAll
from tyr.search.economy import Economy
from tyr.search.evolution import EvolutionarySearch
from tyr.search.kept import KeptStructures
from tyr.search.objective import KdLogits
from tyr.search.racing import SequentialRacing
from tyr.search.rounds import RoundsStart
from tyr.search.samples import NestedSamples
from tyr.search.surrogate import LinearSurrogate
from tyr.sparsity import Allocation, unit_budget
from tyr.supernet.accumulation import ExpectationAccumulation, RandomAccumulation
from tyr.supernet.finish import FromSupernet, Repruned
from tyr.supernet.settings import SupernetSettings
from tyr.trainer import Trainer

BLOCKS, HEADS, NEURONS = 3, 6, 40


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the run may catch it as an ordinary error."""


class StopAt(events.Callback):
    """Dies at the n-th report of a run, whatever it reports."""

    def __init__(self, countdown: int) -> None:
        self.left = countdown
        self.seen = 0

    def _tick(self) -> None:
        self.seen += 1
        self.left -= 1
        if self.left == 0:
            raise Killed

    def on_stage_start(self, event: events.StageStarted) -> None:
        self._tick()

    def on_sublayer_pruned(self, event: events.SublayerPruned) -> None:
        self._tick()

    def on_generation_end(self, event: events.GenerationFinished) -> None:
        self._tick()

    def on_evaluation_end(self, event: events.EvaluationFinished) -> None:
        self._tick()

    def on_stage_end(self, event: events.StageFinished) -> None:
        self._tick()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    """A three-block random model with six query heads on three KV heads."""
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder, blocks=BLOCKS, heads=HEADS, kv_heads=3, neurons=NEURONS, context=64)
    return PretrainedModel(str(folder))


def make_method(**changes: Any) -> Method:
    """A method small enough for a test."""
    parts: dict[str, Any] = {
        "iterations": 2,
        "seed": 0,
        "pruner": LocalPruner(Taylor(), SelfTarget(), ffn_group=4),
        "supernet": SupernetSettings(ExpectationAccumulation()),
        "search": EvolutionarySearch(
            KdLogits(), generations=2, offspring=4, stages=[[32, 2], [64, 1]]
        ),
        "finish": Repruned(),
        "exporter": HuggingFaceExport(),
    }
    return Method(**{**parts, **changes})


Runner = Callable[..., Allocation]


@pytest.fixture
def run(source: PretrainedModel) -> Runner:
    """Runs a method in a directory."""
    text = Path(source.path) / "text.txt"  # the standard library takes longer to read
    text.write_text(numbered(0, 900))

    def start(
        path: Path,
        method: Method | None = None,
        *,
        sparsity: float = 0.375,
        resume: bool = False,
        callbacks: events.Callback | None = None,
        config_yaml: str = "sparsity: 0.375\n",
    ) -> Allocation:
        data = TextFileData(
            text,
            sequence_length=32,
            calibration_tokens=256,
            search_tokens=128,
            evaluation_tokens=64,
        )
        return launch(
            method or make_method(),
            PerplexityEvaluator(),
            source,
            data,
            callbacks=callbacks or events.Callback(),
            trainer=Trainer("cpu"),
            job=Job(
                path,
                {"sparsity": sparsity, "resume": resume, "seed": 0},
                config_yaml,
                "python -m tyr.run",
            ),
        )

    return start


def tensors_sha(folder: Path) -> dict[str, str]:
    """Digest of every weight file of an export."""
    files = sorted((folder / "model").glob("*.safetensors"))
    assert files
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.375, 0.5, 0.9])
def test_the_export_lost_the_budget_to_the_unit(
    sparsity: float, run: Runner, tmp_path: Path
) -> None:
    allocation = run(tmp_path / "run", make_method(iterations=1), sparsity=sparsity)
    assert allocation.total == {
        "attn": unit_budget(sparsity, BLOCKS * HEADS),
        "ffn": unit_budget(sparsity, BLOCKS * NEURONS),
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", trust_remote_code=True)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for block in range(BLOCKS):
        ffn = shapes.get(f"model.layers.{block}.mlp.down_proj.weight", (0, 0))
        heads = shapes.get(f"model.layers.{block}.self_attn.o_proj.weight", (0, 0))
        assert ffn[1] == NEURONS - allocation.ffn[block]
        assert heads[1] == (HEADS - allocation.attn[block]) * HEAD_SIZE


def count_reports(run: Runner, path: Path, method: Method) -> int:
    """How many reports an uninterrupted run makes."""
    counter = StopAt(10**9)
    run(path, method, callbacks=counter)
    return counter.seen


METHODS: dict[str, Callable[[], Method]] = {
    "paper": make_method,
    "random accumulation, corrected target, from the supernet": lambda: make_method(
        pruner=LocalPruner(SecondOrder(), CorrectedTarget(), ffn_group=4),
        supernet=SupernetSettings(RandomAccumulation(), attention_unit="kv_group", interval=0.25),
        finish=FromSupernet(),
    ),
    "every option that saves tokens": lambda: make_method(
        search=EvolutionarySearch(
            KdLogits(),
            generations=3,
            offspring=4,
            stages=[[32, 2], [128, 1]],
            economy=Economy(
                start=RoundsStart(),
                surrogate=LinearSurrogate(),
                racing=SequentialRacing(),
                samples=NestedSamples(generations=2),
                archive=KeepAll(),
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stride", [53, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_report_ends_the_same(
    name: str, stride: int, run: Runner, tmp_path: Path
) -> None:
    method = METHODS[name]()
    total = count_reports(run, tmp_path / "whole", method)
    whole = run(tmp_path / "whole", method, resume=True)  # reported again, not computed again
    for countdown in range(1, total + 1, stride):
        path = tmp_path / f"killed-{countdown}"
        with pytest.raises(Killed):
            run(path, method, callbacks=StopAt(countdown))
        assert run(path, method, resume=True) == whole
        assert tensors_sha(path) == tensors_sha(tmp_path / "whole")


class Evaluations(events.Callback):
    """How many evaluations the last stage said it would make, and which it made."""

    def __init__(self) -> None:
        self.said = 0
        self.made: list[str] = []

    def on_stage_start(self, event: events.StageStarted) -> None:
        self.said, self.made = (event.steps, []) if event.stage == "evaluation" else (0, self.made)

    def on_evaluation_end(self, event: events.EvaluationFinished) -> None:
        self.made.append(event.name)

    def on_stage_end(self, event: events.StageFinished) -> None:
        if event.stage == "evaluation":
            assert self.said == len(self.made)


@pytest.mark.parametrize(
    ("iterations", "compare", "made"),
    [
        (0, True, ["tyr", "uniform"]),
        (1, True, ["tyr", "uniform", "tyr_supernet"]),
        (1, False, ["tyr", "uniform"]),
    ],
)
def test_the_last_stage_says_how_many_models_it_evaluates(
    run: Runner, tmp_path: Path, iterations: int, compare: bool, made: list[str]
) -> None:
    seen = Evaluations()
    method = make_method(iterations=iterations, finish=Repruned(compare=compare))
    run(tmp_path / "run", method, callbacks=seen)
    assert seen.made == made


class FinishSteps(events.Callback):
    """What the finish said it would report, and how many sublayers it pruned."""

    def __init__(self) -> None:
        self.said = self.pruned = 0
        self._stage = ""

    def on_stage_start(self, event: events.StageStarted) -> None:
        self._stage = event.stage
        if event.stage == "finish":
            self.said = event.steps

    def on_sublayer_pruned(self, event: events.SublayerPruned) -> None:
        self.pruned += self._stage == "finish"


@pytest.mark.parametrize(
    ("finish", "said", "pruned"), [(Repruned(), 2 * BLOCKS, 2 * BLOCKS), (FromSupernet(), 1, 0)]
)
def test_a_finish_announces_the_sublayers_that_it_prunes(
    run: Runner, tmp_path: Path, finish: Any, said: int, pruned: int
) -> None:
    seen = FinishSteps()
    run(tmp_path / "run", make_method(iterations=1, finish=finish), callbacks=seen)
    assert (seen.said, seen.pruned) == (said, pruned)


def test_what_a_finished_run_had_no_time_to_delete_is_deleted_later(
    run: Runner, tmp_path: Path
) -> None:
    path, method = tmp_path / "run", make_method()
    whole = run(path, method)
    (path / "uniform").mkdir()
    (path / "uniform" / "left.safetensors").write_bytes(b"half")
    assert run(path, method, resume=True) == whole
    assert not (path / "uniform").exists()


def test_results_that_were_lost_after_the_end_are_made_again(run: Runner, tmp_path: Path) -> None:
    path, method = tmp_path / "run", make_method()
    whole = run(path, method)
    rows = (path / "evaluation.json").read_bytes()
    exported = tensors_sha(path)
    (path / "evaluation.json").write_bytes(b"")
    assert run(path, method, resume=True) == whole
    assert (path / "evaluation.json").read_bytes() == rows
    assert tensors_sha(path) == exported
    shutil.rmtree(path / "model")
    assert run(path, method, resume=True) == whole
    assert tensors_sha(path) == exported


def test_a_damaged_file_is_rebuilt_and_the_rest_kept(run: Runner, tmp_path: Path) -> None:
    method = make_method()
    whole = run(tmp_path / "whole", method)
    path = tmp_path / "run"
    with pytest.raises(Killed):
        run(path, method, callbacks=StopAt(30))
    [file] = path.glob("iteration-1/supernet/001.ffn.safetensors")
    intact = {f: f.stat().st_mtime_ns for f in file.parent.glob("*.safetensors")}
    file.write_bytes(file.read_bytes()[:-7])
    assert run(path, method, resume=True) == whole
    assert tensors_sha(path) == tensors_sha(tmp_path / "whole")
    rewritten = [f.name for f, time in intact.items() if f.stat().st_mtime_ns != time]
    assert rewritten == ["001.ffn.safetensors"]


def test_a_damaged_search_state_restarts_that_search_only(
    run: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = make_method()
    whole = run(tmp_path / "whole", method)
    path = tmp_path / "run"
    with pytest.raises(Killed):
        run(path, method, callbacks=StopAt(30))
    (path / "iteration-1" / "search.json").write_text('{"grid": ')
    assert run(path, method, resume=True) == whole
    assert "search.json is damaged" in caplog.text


class Shrink(events.Callback):
    """From the first report of a kind on, no file may grow beyond so many bytes."""

    def __init__(self, report: type, num_bytes: int, stage: str = "") -> None:
        self._report, self._bytes, self._stage = report, num_bytes, stage

    def _tick(self, event: object) -> None:
        if isinstance(event, self._report) and self._stage in ("", getattr(event, "stage", None)):
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._bytes, hard))

    on_stage_start = on_generation_end = on_evaluation_end = _tick


# In the order in which a run comes to them; each start of it gets one further.
FULL_DISKS = [
    (Shrink(events.GenerationFinished, 64), "cannot write .*search.json: File too"),
    (Shrink(events.GenerationFinished, 0), "cannot write .*metrics.csv: File too"),
    (Shrink(events.StageStarted, 64, "evaluation"), "cannot write .*evaluation.json: File too"),
    (
        Shrink(events.StageStarted, 9000, "export"),
        "cannot write the pruned model .*too large.*free",
    ),
]


def test_a_disk_that_is_full_again_and_again_is_a_clear_error_and_costs_no_result(
    run: Runner, tmp_path: Path
) -> None:
    method, path = make_method(iterations=1), tmp_path / "run"
    whole = run(tmp_path / "whole", method)
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    for number, (shrink, message) in enumerate(FULL_DISKS):
        parts = [shrink, CsvMetrics()] if "metrics" in message else [CsvMetrics(), shrink]
        with largest_file(no_limit), pytest.raises(StoreError, match=message):
            run(path, method, resume=number > 0, callbacks=events.CallbackList(parts))
        assert not list(path.rglob("*.tmp"))
        assert not (path / "model").exists()
    assert run(path, method, resume=True, callbacks=CsvMetrics()) == whole
    assert tensors_sha(path) == tensors_sha(tmp_path / "whole")


def test_another_configuration_is_refused_with_the_keys_that_differ(
    run: Runner, tmp_path: Path
) -> None:
    run(tmp_path / "run", make_method(iterations=0))
    with pytest.raises(ResumeError, match=r"different configuration \(sparsity: was 0.375, now 0"):
        run(tmp_path / "run", make_method(), resume=True, config_yaml="sparsity: 0.25\n")
    with pytest.raises(ResumeError, match="already holds a run"):
        run(tmp_path / "run", make_method())


def test_the_same_seed_gives_the_same_model(run: Runner, tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert first == second
    assert tensors_sha(tmp_path / "a") == tensors_sha(tmp_path / "b")


def test_structures_kept_on_the_device_change_nothing(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def method(most: float) -> Method:
        search = EvolutionarySearch(
            KdLogits(),
            generations=2,
            offspring=4,
            stages=[[32, 2], [64, 1]],
            structure_cache_bytes=most,
        )
        return make_method(iterations=1, search=search)

    made = []
    monkeypatch.setattr(
        pipeline, "KeptStructures", lambda *a, **k: made.append(KeptStructures(*a, **k)) or made[-1]
    )
    first = run(tmp_path / "a", method(0))
    second = run(tmp_path / "b", method(1e6))
    assert first == second
    assert tensors_sha(tmp_path / "a") == tensors_sha(tmp_path / "b")
    assert [0 < kept.bytes_kept <= 1e6 for kept in made] == [True]
