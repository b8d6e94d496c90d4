"""The utility benchmark: every arm under one contract, one table (controller.md, section 5)."""
