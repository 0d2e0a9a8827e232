"""Names of ours in A2A, which its gateway and the agents that stand for A2A agents elsewhere both know."""

from __future__ import annotations

#: The extension whose params hold the JSON Schemas of an agent's topics: skills have no place for them.
SCHEMAS = "urn:squadron:a2a:schemas:1"
#: Keys in `metadata`: which topic, how it ended, and whether the same call may end better.
TOPIC, OUTCOME, RETRYABLE = "squadron/topic", "squadron/outcome", "squadron/retryable"
#: How often a task may yet be handed on, be it from squad to squad; a key in `metadata`, too.
HOPS = "squadron/hops"
#: What a question asks for, as JSON Schema; and what its answer is, if that is no yes: decline, or cancel.
QUESTION_SCHEMA, ACTION = "squadron/answerSchema", "squadron/action"
#: Ids of the artifacts of a task: what it emits, and what it comes to.
STREAM, RESULT = "stream", "result"
