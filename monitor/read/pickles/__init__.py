"""The only unpickling of the project: opcodes become inert nodes, nothing is imported, called or hashed."""
