"""Faults that break privacy in silence, each put into a copy and met by a named test.

privacy.md 17 lists 33; `python -m tests.mutants` (make mutants) applies them one by one.
"""
