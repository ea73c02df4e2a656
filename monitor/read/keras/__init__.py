"""What the formats of Keras share: HDF5 without locks, names of layers, state of optimizers."""
