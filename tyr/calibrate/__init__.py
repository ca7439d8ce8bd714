"""Calibration: hidden states in flight and the statistics read from them."""
