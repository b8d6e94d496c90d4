"""Encryption at rest: uploads and what jobs leave, under keys that can be destroyed."""
