"""Loading dense decoders and running their sublayers, whole or sliced."""
