"""Evolutionary search for the sparsity distribution (Section 2.4, Algorithm 3)."""
