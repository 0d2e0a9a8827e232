"""Agents whose handlers ask an LLM. How a model is asked over several rounds is decided in `runs`, not here."""
