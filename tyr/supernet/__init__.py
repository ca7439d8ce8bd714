"""The supernet: structures of every sublayer at every level (Section 2.3, Algorithm 2)."""
