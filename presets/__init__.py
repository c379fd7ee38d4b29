"""Settings that are known to work: one JSON file each, for --preset NAME."""
