"""Searches over any family, long form, guard, output formats."""
