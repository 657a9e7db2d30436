"""One output a module; a report reads results and computes nothing that a result does not say."""
