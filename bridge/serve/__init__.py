"""The only folder that speaks Ray."""
