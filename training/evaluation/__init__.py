"""Protocols, metrics, plots and the report."""
