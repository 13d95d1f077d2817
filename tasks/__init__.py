"""lmms-eval tasks: YAML, groups and one thin adapter."""
