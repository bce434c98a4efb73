"""Streaming transducers as ONNX graphs: what a directory of them says, and the model that runs them."""
