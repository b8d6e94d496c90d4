"""Answers kept under `Idempotency-Key`, for every POST that makes something."""
