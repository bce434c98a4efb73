"""Evaluation: scores of speech translation, their significance, and reports."""
