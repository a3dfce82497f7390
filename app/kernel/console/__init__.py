"""The operator's console: pages and buttons in the browser, derived from actions (ADR 45)."""
