"""Carry out batched operations: compiled by numba on the CPU, by torch on any device."""
