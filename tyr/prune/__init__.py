"""Local pruning of one sublayer (Section 2.2, Algorithm 1)."""
