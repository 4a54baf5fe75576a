"""Image-quality metrics: registry, suite, offline weights."""
