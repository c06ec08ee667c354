"""Samplers of ``p(x | y)`` from a denoiser and a measurement operator, one file each."""
