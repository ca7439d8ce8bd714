"""The accelerator's path on a pretended accelerator: values are not computed, devices are checked.

torch's fake tensors know shapes and devices and refuse operations that mix devices, as a GPU would.
What reads values off (finite checks, the success of a factorisation) is taken as given. Run as a
script, in a process of its own: a backend cannot be taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from tests.tiny import tiny_decoder
from tyr.calibrate.statistics import Statistics, collect
from tyr.calibrate.stream import Stream
from tyr.devices import send
from tyr.losses import _logits
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure, Sublayer
from tyr.prune.criterion import Magnitude, Random, Taylor
from tyr.prune.progressive import GreedyPass
from tyr.prune.target import CorrectedTarget, SelfTarget
from tyr.search.objective import dense_reference
from tyr.supernet.accumulation import ExpectationAccumulation

GIVEN = {
    "tyr.calibrate.stream.check_finite": lambda *_: None,
    "tyr.prune.target.damping_amount": lambda *_: 0.1,
    "tyr.prune.progressive.cholesky": lambda matrix, name: torch.linalg.cholesky_ex(matrix)[0],
    "tyr.linalg.cholesky": lambda matrix, name: torch.linalg.cholesky_ex(matrix)[0],
    "tyr.linalg.widest_float": lambda device: torch.float64,
    "tyr.losses.widens_products": lambda device, dtype: True,
    "tyr.devices.widens_products": lambda device, dtype: True,
}


def pretend(decoder: Decoder, device: torch.device) -> Decoder:
    """The decoder with its parameters on the device, their values unknown."""
    for module in decoder.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            there = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            module._parameters[name] = nn.Parameter(there, requires_grad=False)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    decoder.states.device = device
    return decoder


def head_rows(sublayer: Sublayer, heads: Sequence[int]) -> Tensor:
    """`Sublayer._head_rows` of indices without values."""
    index = send(torch.empty(len(heads), dtype=torch.int64), sublayer.output_weight.device)
    return sublayer.rows(index)


def check_structures(decoder: Decoder, hidden: Tensor) -> None:
    """Even and uneven heads and an FFN: sliced, passed, mixed."""
    context = decoder.context(hidden.shape[1])
    attention, ffn = decoder.sublayers[:2]
    for sublayer, kept in ((attention, [0, 2]), (attention, [0, 1, 2]), (ffn, [*range(10)])):
        weight = torch.empty(sublayer.width, len(kept) * sublayer.unit_size)
        structure = Structure(torch.empty(len(kept), dtype=torch.int64), weight)
        with (
            mock.patch.object(Sublayer, "kept_heads", lambda *_, kept=kept: kept),
            mock.patch.object(Sublayer, "_head_rows", head_rows),
        ):
            sliced = sublayer.slice(structure)
        assert sublayer.forward(hidden, context, sliced).device == decoder.device
        rng = torch.Generator()
        mixed = ExpectationAccumulation().mix(sublayer, {0: structure}, rng=rng)
        assert mixed.device == decoder.device


def check_pruning(sublayer: Sublayer, statistics: Statistics) -> None:
    """Steps of the greedy pass for every target and kind of criterion."""
    for target in (SelfTarget(), CorrectedTarget()):
        weight, size = sublayer.output_weight.mT, sublayer.unit_size
        problem = target.problem(statistics, weight, damping=0.01, unit_size=size, name="s")
        for criterion in (Taylor(), Random(), Magnitude()):
            greedy = GreedyPass(problem, criterion=criterion, rng=torch.Generator())
            for _ in range(3):
                greedy.remove(1)
            assert greedy.kept.device == sublayer.output_weight.device


def main() -> None:
    """Walk through calibration, pruning and what the search does with states."""
    backend_registration._setup_privateuseone_for_python_backend("pretended")
    device, decoder = torch.device("pretended", 0), tiny_decoder(dtype=torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        pretend(decoder, device)
        tokens = torch.empty(4, 16, dtype=torch.int64)
        hidden = decoder.embed(tokens)
        try:
            hidden + torch.empty(hidden.shape)
        except RuntimeError:
            pass
        else:
            raise RuntimeError("devices can be mixed unnoticed: this test tests nothing")
        check_structures(decoder, hidden)
        stream = Stream(decoder, tokens, batch_tokens=32)
        for sublayer in decoder.sublayers[:2]:
            statistics = collect(stream.batches(sublayer), stream.batches(sublayer))
            assert statistics.hessian.device == device
            check_pruning(sublayer, statistics)
            stream.advance(sublayer, sublayer.output_weight)
        assert _logits(decoder.final_norm(hidden).flatten(0, 1), decoder.head).device == device
        reference = dense_reference(decoder, tokens, batch_tokens=32, blocks=(0,))
        assert reference.sample(torch.empty(2, dtype=torch.int64), 8).final.device == device


if __name__ == "__main__":
    patches = [mock.patch(name, value) for name, value in GIVEN.items()]
    for patch in patches:
        patch.start()
    main()
