"""Images, datasets, crops, degradation, downloads."""
