"""What the formats of single model kinds share: estimators, trees, ONNX graphs, MessagePack, UBJSON."""
