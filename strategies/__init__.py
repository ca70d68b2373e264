"""Phases C (clustering and aggregation) and U (universal distillation) as Flower strategies, and the baselines."""
