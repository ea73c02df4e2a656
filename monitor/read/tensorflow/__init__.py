"""What the formats of TensorFlow share: tables of tensors, the graph of objects, names of variables."""
