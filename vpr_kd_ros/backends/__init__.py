"""Engines that run an exported student."""
