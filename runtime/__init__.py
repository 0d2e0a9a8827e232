"""The rules: what a message, an outcome and a turn are. No network, no Ray, no wall clock."""
