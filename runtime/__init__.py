"""The rules: what a message, an outcome and a turn are. No network, no Ray.

What time it is they are told by a port; only a message that is made without a time asks the wall clock.
"""
