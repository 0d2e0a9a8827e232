"""LLM providers on localhost, of the wires that we speak."""

from tests.llm_chat_server import ScriptedOpenAIServer
from tests.llm_messages_server import ScriptedAnthropicServer
from tests.llm_responses_server import ScriptedResponsesServer
from tests.llm_script import Broken, HttpError

__all__ = [
    "Broken",
    "HttpError",
    "ScriptedAnthropicServer",
    "ScriptedOpenAIServer",
    "ScriptedResponsesServer",
]
