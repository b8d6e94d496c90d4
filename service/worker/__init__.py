"""Celery doorbell, supervisor and the fresh interpreter that trains."""
