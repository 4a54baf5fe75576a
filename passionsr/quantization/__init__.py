"""Number formats, quantizers, quantized layers, artifacts."""
