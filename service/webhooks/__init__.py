"""Webhooks: endpoints that a hospital registers, and the deliveries owed to them."""
