"""Scores of samples, with what decides them printed beside."""

from gspn_dit.evaluation.demo import format_table, score_demo

__all__ = ["format_table", "score_demo"]
