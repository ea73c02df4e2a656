"""Arrays as NumPy and others lay them down: headers, records, values found in inert pickles."""
