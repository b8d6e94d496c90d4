"""Fine-tuning jobs: the row is the truth, everything else may be lost and found again."""
