"""Logs, traces, metrics, captured errors."""
