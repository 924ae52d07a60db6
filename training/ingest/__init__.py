"""Bags to sessions."""
