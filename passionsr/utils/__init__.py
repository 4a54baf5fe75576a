"""Files, memory, system: what every folder may use."""
