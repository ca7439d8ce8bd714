"""The sizes that `gpu.py` measures, and tyr's own plan of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig

from tyr.data import SplitSizes
from tyr.export.checkpoint import NoExport
from tyr.pipeline import Method
from tyr.planner import Planner, StagePlan
from tyr.prune.criterion import Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.target import SelfTarget
from tyr.search.evolution import EvolutionarySearch
from tyr.search.objective import KdLogits
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.finish import Repruned
from tyr.supernet.settings import SupernetSettings


@dataclass(frozen=True)
class GpuSetting:
    """Sizes of model, text and search; the defaults are Llama-3.1-8B and the paper's (A.3).

    Args:
        stages: pairs of tokens and survivors.
        ffn_group: neurons removed per step.
        batch_tokens: positions in one forward call; more than on a CPU, for fewer launches.
        feature_bytes: most bytes of features kept from a sublayer's Hessian until the stream moves
            on, which saves computing them again.
        structure_cache_bytes: most bytes of structures that the search keeps on the device.
    """

    blocks: int = 32
    hidden: int = 4096
    ffn: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128256
    dtype: str = "bfloat16"
    sparsity: float = 0.5
    sequence_length: int = 4096
    calibration_tokens: int = 4194304
    offspring: int = 128
    stages: tuple[tuple[int, int], ...] = ((2048, 16), (16384, 4), (131072, 1))
    ffn_group: int = 16
    batch_tokens: int = 32768
    feature_bytes: int = 1 << 28
    structure_cache_bytes: int = 24_000_000_000
    seed: int = 0

    @property
    def search_tokens(self) -> int:
        """Enough text for the largest stage, in whole sequences."""
        return -(-self.stages[-1][0] // self.sequence_length) * self.sequence_length

    def config(self) -> LlamaConfig:
        """The stock configuration."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.sequence_length,
            tie_word_embeddings=False,
        )

    def method(self) -> Method:
        """The paper's method, one iteration of one generation."""
        return Method(
            iterations=1,
            seed=self.seed,
            pruner=LocalPruner(Taylor(), SelfTarget(), ffn_group=self.ffn_group),
            supernet=SupernetSettings(
                ExpectationAccumulation(),
                batch_tokens=self.batch_tokens,
                feature_bytes=self.feature_bytes,
            ),
            search=EvolutionarySearch(
                KdLogits(),
                generations=1,
                offspring=self.offspring,
                stages=self.stages,
                batch_tokens=self.batch_tokens,
                structure_cache_bytes=self.structure_cache_bytes,
            ),
            finish=Repruned(),
            exporter=NoExport(),
        )

    def planner(self) -> Planner:
        """Counts the stages of this setting."""
        dtype = getattr(torch, self.dtype)
        sizes = SplitSizes(
            sequence_length=self.sequence_length,
            calibration_tokens=self.calibration_tokens,
            search_tokens=self.search_tokens,
            evaluation_tokens=self.sequence_length,
        )
        return Planner(
            self.method(),
            self.config(),
            sizes,
            sparsity=self.sparsity,
            storage=dtype,
            compute=dtype,
        )

    def generation_flops(self) -> float:
        """One generation without the teacher's forward pass, which every generation shares."""
        planner = self.planner()
        teacher = planner.shape.forward_flops(self.search_tokens, self.sequence_length)
        return stage(planner, "search", torch.device("cpu")).compute - teacher


def stage(planner: Planner, name: str, device: torch.device) -> StagePlan:
    """A stage of a plan, as a device would compute it."""
    return next(stage for stage in planner.plan(device=device).stages if stage.name == name)
