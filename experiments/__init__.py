"""Tests of the paper's claims: `python -m experiments`, or `make experiments`. Results in docs/experiments.md."""
