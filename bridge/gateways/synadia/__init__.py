"""Synadia Agent Protocol 0.3: each topic is an agent that can be found, prompted and asked how it is."""
