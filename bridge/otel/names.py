"""Names and attributes of spans.

Those of messaging are of the OpenTelemetry semantic conventions 1.45.0 (docs/messaging/messaging-spans.md), those
of models of semantic-conventions-genai v0.1.0 (docs/gen-ai/gen-ai-spans.md, gen-ai-agent-spans.md). Both are in
development; kept here as text, since the constants of the Python package are marked as deprecated. What neither
has begins with `squadron.`.
"""

from __future__ import annotations

from typing import Final

#: What the tracer calls itself, and the schema that the attributes fit.
SCOPE: Final = "squadron"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.45.0"

ERROR_TYPE: Final = "error.type"

# Messaging. There is no well-known value for NATS; a name of one's own is allowed.
SYSTEM: Final = "messaging.system"
NATS: Final = "nats"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
TEMPLATE: Final = "messaging.destination.template"
TEMPORARY: Final = "messaging.destination.temporary"
MESSAGE_ID: Final = "messaging.message.id"
#: The correlation id: not to be confused with a conversation of ours.
CORRELATION_ID: Final = "messaging.message.conversation_id"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"
CLIENT_ID: Final = "messaging.client.id"

# Models and agents.
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
AGENT: Final = "gen_ai.agent.name"
CONVERSATION: Final = "gen_ai.conversation.id"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
TOOL: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
#: Contents: only when they are asked for.
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
DETAILS_EVENT: Final = "gen_ai.client.inference.operation.details"

# Ours.
ATTEMPT: Final = "squadron.attempt"
END: Final = "squadron.end"
OUTCOME: Final = "squadron.outcome"
REPLICA: Final = "squadron.replica"
VERSION: Final = "squadron.version"
WAITED_S: Final = "squadron.waited_s"
AFTER_S: Final = "squadron.after_s"
SECONDS: Final = "squadron.seconds"
RUN: Final = "squadron.run"
EPOCH: Final = "squadron.epoch"
ROUND: Final = "squadron.round"
TRY: Final = "squadron.try"
COST_USD: Final = "squadron.cost_usd"
STOPPED: Final = "squadron.stopped"
TOKENS: Final = "squadron.tokens"
QUERY: Final = "squadron.query"
ABOUT: Final = "squadron.about"
BY: Final = "squadron.by"
ACTION: Final = "squadron.action"
CALL: Final = "squadron.call"
REASON: Final = "squadron.reason"
#: On a link: what is at its other end.
LINK: Final = "squadron.link"

#: What providers are called in the conventions, where that is not our name for them.
PROVIDERS = {"azure": "azure.ai.openai", "google": "gcp.gemini"}
