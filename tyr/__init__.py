"""tyr: structural pruning of decoder LLMs by a searched sparsity distribution.

The package follows "Týr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution
Optimization" (NeurIPS 2025). Start reading at `tyr/pipeline.py`, which is the paper's Algorithm 4.
Importing `tyr` does no work and loads no heavy dependency.
"""

__version__ = "0.1.0"
