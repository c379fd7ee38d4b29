"""Baselines: MF, LightGCN, VBPR and FREEDOM."""
