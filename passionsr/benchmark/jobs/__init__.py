"""One file per kind of job of the workflow: files in, files out."""
