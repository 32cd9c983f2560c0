"""The synthesis optimized for inference on a CPU: packed weights, channels-last convolutions."""
