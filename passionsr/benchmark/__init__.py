"""One benchmark: its configuration, where its files lie, its jobs and its plan."""
