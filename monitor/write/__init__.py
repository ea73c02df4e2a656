"""Clean copies of checkpoints: tensors out of any readable format into safetensors or npz."""
