"""What the formats of PyTorch share: archives, storages, state dicts, sharded metadata, flat partitions."""
