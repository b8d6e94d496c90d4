"""Empirical audit of a job: a smoke alarm for broken implementations, never a proof.

Import the module that holds the noun you need: `bounds`, `curve`, `coins`, `canaries`,
`selftest`, `draws`, `figures`, `power`, `report`, `saved`; they import no torch, so that an
audit is checked without it. `units` and `preflight` are the trainer's side. Everything they
read is a noised output, a public canary or a coin flip (AU1): an audit costs no patient any
privacy.
"""
