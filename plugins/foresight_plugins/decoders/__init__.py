"""Built-in decoders, one file each."""
