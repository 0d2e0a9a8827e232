"""Agents that stand for servers of other protocols: their operations are topics, as any other agent's.

`remote_agent.py` is what all of them share, `foreign_schemas.py` what is taken of words and schemas of others;
each protocol has modules of its own beside them, which load its packages when a replica starts.
"""
