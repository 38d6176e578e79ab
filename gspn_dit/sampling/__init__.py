"""Sampling: from a run to grids and sample files."""
