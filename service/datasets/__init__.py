"""Uploaded files, their validation, datasets and immutable versions."""
