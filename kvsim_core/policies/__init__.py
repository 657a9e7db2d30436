"""One policy a module, found by itself when `kvsim_core` is imported."""
