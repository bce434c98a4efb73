"""The sizes of the recipes: one file for each recipe and size."""
