"""Empirical audit of a job: a smoke alarm for broken implementations, never a proof.

Import the module that holds the noun you need: `bounds`, `curve`, `coins`, `canaries`,
`selftest`, `draws`, `power`, `report`. None of them imports torch. Everything they read is
a noised output, a public canary or a coin flip (AU1), so that an audit costs no patient
any privacy.
"""
