"""The guided demonstration: synthetic patients, a packaged model, a client of the API."""
