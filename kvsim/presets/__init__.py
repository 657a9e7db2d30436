"""Data that comes with kvsim: machines and models, a source for every number."""
