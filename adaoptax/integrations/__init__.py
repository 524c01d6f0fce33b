"""Thin adapters to other libraries; the only files that import them. Import what you use."""
