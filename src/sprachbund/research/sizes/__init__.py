"""Settings of the recipes: one TOML file for each recipe and size."""
