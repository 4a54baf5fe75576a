"""One-step SR models: architecture, families, folders."""
