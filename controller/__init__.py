"""Hyper-policies that steer a private fine-tune from released and public values only."""
