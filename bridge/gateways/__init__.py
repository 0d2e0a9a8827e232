"""Gateways: doors through which clients of other protocols reach the agents.

Here is what all doors share; each protocol has a room, which knows nothing of the others and is loaded only by
the process that serves it. A door keeps no state of tasks: what it answers comes from the task's own lite topics,
so any process of a gateway answers any request.
"""
