"""Differentially private LoRA fine-tuning: mechanism, accounting and training loop.

Import the module that holds the noun you need; this package re-exports nothing,
so that the torch-free modules (errors, events, accounting, planner, plan, ports,
telemetry, certificate) stay importable without torch.
"""
