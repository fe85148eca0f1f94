"""Bundles: kernels as files that need nothing of convgen."""
