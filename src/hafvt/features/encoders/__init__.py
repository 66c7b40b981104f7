"""Encoders, one file each; `hafvt.features.modalities` lists them."""
