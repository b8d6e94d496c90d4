"""The fine-tuning service: HTTP API, ledger, queue, workers, dashboard."""
