"""Model families and the model directory."""
