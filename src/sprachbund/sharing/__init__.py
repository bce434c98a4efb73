"""What languages should share inside a model: gradients compared, and feed-forwards split where they conflict."""
