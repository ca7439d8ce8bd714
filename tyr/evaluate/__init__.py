"""Measuring models; nothing here knows how they were pruned."""
