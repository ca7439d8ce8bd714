"""The method on an accelerator, against slow twins and float64; the same tests run on the CPU.

`python -m pytest -m gpu` on a machine with one. What they cover: slicing, second moments, solves,
the whole population against one candidate at a time, copies that nobody waits for, and a run from
the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.accelerator import DEVICES, named_device
from tests.cli import run_cli
from tests.prune.problems import random_data
from tests.references.masked_model import masked_model
from tests.references.one_by_one import OneByOneEvaluator
from tests.supernet.building import Build, small_pruner
from tests.tiny import random_matrix, random_tokens, tiny_decoder
from tests.tolerance import assert_close, relative_error
from tyr.calibrate.statistics import Statistics, collect, gram, strip_width
from tyr.devices import send, widens_products
from tyr.linalg import cholesky
from tyr.losses import kl_divergences, position_chunks
from tyr.model.decoder import Decoder, PrunedDecoder
from tyr.model.states import StatePool
from tyr.model.sublayer import Structure
from tyr.prune.criterion import Taylor
from tyr.prune.progressive import prune_progressively
from tyr.prune.target import SelfTarget
from tyr.search.kept import KeptStructures, StructureSource
from tyr.search.mutation import mutate
from tyr.search.objective import KdLogits, dense_reference
from tyr.search.population import PopulationEvaluator
from tyr.search.selection import Sample

REASON = "float32 on an accelerator, sums in another order"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return named_device(request.param)


def every_second_unit(decoder: Decoder) -> dict[Any, Structure]:
    """Structures on the CPU, as a store gives them."""
    structures = {}
    for sublayer in decoder.sublayers:
        kept = torch.arange(0, sublayer.num_units, 2)
        rows = sublayer.rows(kept).to(decoder.device)
        structures[sublayer.id] = Structure(kept, sublayer.output_weight[:, rows].cpu())
    return structures


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.usefixtures("no_grad")
def test_a_sliced_model_is_the_masked_one(
    device: torch.device, dtype: torch.dtype, tolerance: float
) -> None:
    decoder, tokens = tiny_decoder(device=device, dtype=dtype), random_tokens(3, 16)
    structures = every_second_unit(decoder)
    hidden = PrunedDecoder(decoder, structures.__getitem__).final_hidden(tokens)
    assert hidden.device.type == device.type
    logits = hidden @ decoder.head.mT
    masked = masked_model(decoder, structures)(tokens.to(device)).logits
    assert_close(logits.cpu(), masked.cpu(), tolerance=tolerance, reason=f"{dtype} arithmetic")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_second_moments_of_half_precision_are_summed_in_float32(
    device: torch.device, dtype: torch.dtype
) -> None:
    features = random_matrix(700, 500).to(dtype)  # more than a strip wide
    expected = features.double().mT @ features.double()
    product = gram(features.to(device))
    assert product.dtype == torch.float32
    assert torch.equal(product, product.mT)
    assert_close(product.cpu(), expected, tolerance=1e-5, reason=REASON)


@pytest.mark.gpu
def test_a_hessian_of_several_wide_strips_is_summed_over_batches() -> None:
    device = named_device("accelerator")
    width = 2 * strip_width(device.type) + 70
    batches = [random_matrix(1, 300, width, seed=seed).bfloat16().to(device) for seed in (0, 1)]
    hessian = collect(((batch[..., :4], batch) for batch in batches), None).hessian
    expected = sum(batch[0].double().mT @ batch[0].double() for batch in batches)
    assert hessian.dtype == torch.float32
    assert torch.equal(hessian, hessian.mT)
    assert_close(hessian.cpu(), expected.cpu(), tolerance=1e-5, reason=REASON)


@pytest.mark.gpu
def test_a_kl_of_many_positions_and_words_in_bfloat16_is_that_of_float64() -> None:
    device = named_device("accelerator")
    head, teacher, student = (
        random_matrix(*shape, seed=seed).bfloat16().to(device)
        for seed, shape in enumerate([(50000, 32), (2, 3000, 32), (2, 3000, 32)])
    )
    chunks = position_chunks(6000, len(head), device)
    assert len(list(chunks)) > 2
    log_p, log_q = (
        torch.log_softmax(hidden.double().flatten(0, 1) @ head.double().mT, dim=-1)
        for hidden in (teacher, student)
    )
    expected = float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())
    kl = kl_divergences(teacher, [student], head)[0]
    tolerance = 1e-4 if widens_products(device, head.dtype) else 1e-2
    assert kl == pytest.approx(expected, rel=tolerance)


@pytest.mark.gpu
def test_states_are_read_before_their_memory_is_written_again(tmp_path: Path) -> None:
    device = named_device("accelerator")
    shape = (256, 1024)
    size = 4 * 256 * 1024
    pool = StatePool(device, device_bytes=size, host_bytes=2 * size, folder=tmp_path)
    states = pool.batches([1] * 4, shape, torch.float32)
    assert states.tiers == ("device", "host", "host", "file")
    for index in range(4):
        states[index] = torch.full((1, *shape), float(index), device=device)
    busy = torch.randn(4096, 4096, device=device)
    for _ in range(20):
        for index in range(4):
            for _ in range(3):
                busy = busy @ busy / 4096  # copies queue up behind products
            states[index] = states[index] + 1
    assert [float(batch.mean()) for batch in states] == [20.0, 21.0, 22.0, 23.0]


@pytest.mark.gpu
def test_what_is_sent_may_be_released_at_once() -> None:
    device = named_device("accelerator")
    busy, there = torch.randn(4096, 4096, device=device), []
    for number in range(50):
        busy = busy @ busy / 4096
        for source in (torch.full((1 << 20,), float(number)), torch.arange(100) + number):
            there.append(send(source.pin_memory() if number % 2 else source, device))
            del source
    assert [float(t[0]) for t in there[::2]] == [float(n) for n in range(50)]
    assert all(float(t.min()) == float(t.max()) for t in there[::2])
    assert [int(t[0]) for t in there[1::2]] == list(range(50))


@pytest.mark.gpu
def test_a_wide_ffn_is_pruned_nearly_as_on_the_cpu() -> None:
    device, data = named_device("accelerator"), random_data(512, 1, outputs=64, tokens=1500)
    rng, counts = torch.Generator(), [128, 256, 509, 512]
    narrow = Statistics(data.statistics.hessian.float().to(device), None, None, 1500)
    weight = data.weight.float().to(device)
    target = SelfTarget()
    there = target.problem(narrow, weight, damping=0.01, unit_size=1, name="s")
    found = prune_progressively(there, counts, criterion=Taylor(), group_size=16, rng=rng)
    exact = prune_progressively(
        data.self_problem(), counts, criterion=Taylor(), group_size=16, rng=rng
    )
    for removed in counts:
        kept = set(found[removed].kept.tolist())
        assert len(kept) == 512 - removed
        assert len(kept ^ set(exact[removed].kept.tolist())) <= 4  # near ties in float32
        assert found[removed].error == pytest.approx(exact[removed].error, rel=1e-2, abs=1e-5)


def test_a_float32_matrix_that_only_float64_can_factor_is_factored_there(
    device: torch.device,
) -> None:
    matrix = torch.tensor([[0.5884774, 0.6320305], [0.6320305, 0.67880696]])
    factor = cholesky(matrix.to(device), name="s")
    assert factor.dtype == torch.float32
    assert_close((factor @ factor.mT).cpu(), matrix, tolerance=1e-6, reason="float32 factor")


@pytest.mark.parametrize("kind", ["attn", "ffn"])
def test_structures_solved_in_float32_are_those_of_float64(device: torch.device, kind: str) -> None:
    features = random_matrix(400, 32 if kind == "attn" else 24)
    wide = Statistics(features.mT @ features, None, None, len(features))
    narrow = Statistics(wide.hessian.float().to(device), None, None, len(features))
    expected = solve(tiny_decoder(), wide, kind)
    for removed, level in solve(tiny_decoder(device=device), narrow, kind).items():
        assert level.structure.kept.tolist() == expected[removed].structure.kept.tolist()
        weight = level.structure.weight
        assert weight.device.type == "cpu"
        assert_close(
            weight, expected[removed].structure.weight, tolerance=1e-4, reason="float32 solves"
        )


def solve(decoder: Decoder, statistics: Statistics, kind: str) -> dict[int, Any]:
    sublayer = next(s for s in decoder.sublayers if s.id.kind == kind)
    return small_pruner().prune(
        sublayer,
        statistics,
        [0, sublayer.num_units // 2, sublayer.num_units],
        storage_dtype=torch.float32,
        rng=torch.Generator().manual_seed(0),
    )


@pytest.mark.usefixtures("no_grad")
def test_a_population_has_the_losses_of_its_members_one_by_one(
    device: torch.device, tmp_path: Path
) -> None:
    decoder, text = tiny_decoder(device=device), random_tokens(5, 12, seed=7)
    build = Build(decoder, random_tokens(6, 16), tmp_path)
    store = build.run()
    bounds, rng = build.grid.bounds(), torch.Generator().manual_seed(0)
    candidates = [mutate((0,) * len(bounds), bounds, rng, max_shifts=3) for _ in range(8)]

    def evaluator(source: StructureSource) -> PopulationEvaluator:
        reference = dense_reference(decoder, text)
        return PopulationEvaluator(
            decoder, source, objective=KdLogits(), reference=reference, batch_tokens=32
        )

    sample = Sample(torch.tensor([0, 2, 3]), 12)
    together = evaluator(store).evaluate(candidates, sample)
    alone = OneByOneEvaluator(decoder, store, text.to(device)).evaluate(candidates, sample)
    kept = KeptStructures(store, device, most_bytes=10_000)
    again = evaluator(kept)
    for _ in range(2):
        assert again.evaluate(candidates, sample).losses == together.losses
    assert 0 < kept.bytes_kept <= 10_000
    assert relative_error(together.losses, alone.losses) < 1e-4  # float32 sums over the vocabulary
    assert together.sublayer_evaluations == alone.sublayer_evaluations


@pytest.mark.usefixtures("no_grad")
def test_a_supernet_is_as_good_as_that_of_the_cpu(device: torch.device, tmp_path: Path) -> None:
    tokens = random_tokens(6, 16)
    here = Build(tiny_decoder(device=device), tokens, tmp_path / "here").run()
    there = Build(tiny_decoder(), tokens, tmp_path / "there").run()
    first, *_ = sublayers = [sublayer.id for sublayer in tiny_decoder().sublayers]
    for level, structure in there.read(first).items():  # before any near tie can fall otherwise
        ours = here.read(first, [level])[level]
        assert torch.equal(ours.kept, structure.kept)
        assert_close(ours.weight, structure.weight, tolerance=1e-3, reason=REASON)
    for sublayer in sublayers:
        left, right = here.errors(sublayer), there.errors(sublayer)
        assert list(left) == list(right)
        assert list(left.values()) == pytest.approx(list(right.values()), rel=0.1, abs=1e-3)


@pytest.mark.gpu
def test_a_run_from_the_command_line_ends_on_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, run_dir = named_device("accelerator"), tmp_path / "run"
    words = ("debug=fast", "logger=csv", "callbacks=quiet", f"trainer.accelerator={device.type}")
    outcome = run_cli(capsys, *words, f"run_dir={run_dir}")
    assert outcome.status == 0, outcome.err
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["removed_units"] == summary["asked_units"]
    assert summary["tyr"]["perplexity"] < float("inf")
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["device"].startswith(device.type)
    assert environment["processor"]


@pytest.mark.gpu
def test_what_is_read_ahead_for_an_accelerator_is_page_locked(tmp_path: Path) -> None:
    device = named_device("accelerator")
    decoder = tiny_decoder(device=device)
    store = Build(decoder, random_tokens(6, 16), tmp_path).run()
    requests = [(sublayer.id, None) for sublayer in decoder.sublayers]
    for (sublayer, _), structures in zip(
        requests, store.read_ahead(requests, pin=True), strict=True
    ):
        for level, structure in store.read(sublayer).items():
            assert torch.equal(structures[level].weight, structure.weight)
            if structure.weight.numel():
                assert structures[level].weight.is_pinned()
