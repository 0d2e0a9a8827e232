"""Lite topics: made, read, followed, shared, counted. Nothing here knows what a task is."""
