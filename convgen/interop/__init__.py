"""Doors to other tools: bundles for C, C++ and Python."""
