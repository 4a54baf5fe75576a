"""OSEDiff on Stable Diffusion 2.1: architecture and import."""
