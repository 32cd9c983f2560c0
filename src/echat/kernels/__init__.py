"""CPU arithmetic of inference and training: attention, packed linear layers, channels-last convolutions."""
