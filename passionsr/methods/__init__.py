"""The Method protocol, PassionSR, and what reproduces its released code."""
