"""Scores of samples, with what decides them printed beside."""
