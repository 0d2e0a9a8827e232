"""Tasks of ours as A2A has them: what is told of one comes from its lite topics, wherever it was asked."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from a2a.helpers.proto_helpers import new_text_part
from a2a.types.a2a_pb2 import (
    Artifact,
    Message,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from squadron.bridge.gateways.a2a.a2a_parts import parts_of
from squadron.bridge.gateways.kept_tasks import KeptTask
from squadron.runtime.asking.answering import OpenQuestion
from squadron.runtime.streams.writer import Chunk
from squadron.runtime.wire.a2a_names import OUTCOME, QUESTION_SCHEMA, RESULT, RETRYABLE, STREAM, TOPIC
from squadron.runtime.wire.outcome import Cancelled, Outcome, Rejected, Result, Undeliverable


def about_of(agent: str, context_id: str, message: Message) -> dict[str, Any]:
    """What is noted of a task beside its ticket."""
    return {"agent": agent, "contextId": context_id, "message": MessageToDict(message)}


def state_of(outcome: Outcome) -> TaskState:
    """How A2A calls an end."""
    match outcome:
        case Result():
            return TaskState.TASK_STATE_COMPLETED
        case Cancelled():
            return TaskState.TASK_STATE_CANCELED
        case Rejected() | Undeliverable():
            return TaskState.TASK_STATE_REJECTED
        case _:
            return TaskState.TASK_STATE_FAILED


def task_of(
    task: KeptTask,
    question: OpenQuestion | None = None,
    chunks: Sequence[Chunk] = (),
    *,
    with_history: bool = True,
) -> Task:
    """A task as it is now, with what it has emitted, and what it asks if that waits for an answer."""
    context_id = str(task.about["contextId"])
    made = Task(id=task.id, context_id=context_id, status=status_of(task, question))
    made.metadata.update({TOPIC: task.handle.topic})
    if with_history:
        made.history.append(ParseDict(task.about["message"], Message(), ignore_unknown_fields=True))
    if chunks:
        parts = [part for each in chunks for part in parts_of(each.value)]
        made.artifacts.append(Artifact(artifact_id=STREAM, name=STREAM, parts=parts))
    if task.outcome is not None:
        made.metadata.update({OUTCOME: task.outcome.kind, RETRYABLE: task.outcome.retryable})
        if isinstance(task.outcome, Result):
            made.artifacts.append(_result_of(task.outcome))
    return made


def status_of(task: KeptTask, question: OpenQuestion | None = None) -> TaskStatus:
    """The status of a task."""
    at = task.news_at or task.created_at
    if task.outcome is not None:
        status = _status(state_of(task.outcome), at)
        if not isinstance(task.outcome, Result):
            status.message.CopyFrom(_said(task, f"{task.outcome.kind.replace('_', ' ')}: {task.outcome.reason}"))
        return status
    if question is not None:
        status = _status(TaskState.TASK_STATE_INPUT_REQUIRED, question.asked_at)
        message = _said(task, question.question.message)
        message.metadata.update({QUESTION_SCHEMA: dict(question.question.schema)})
        status.message.CopyFrom(message)
        return status
    return _status(TaskState.TASK_STATE_WORKING, at)


def message_of(task: KeptTask) -> Message | None:
    """What a handler that returns `{"message": {"parts": […]}}` says in place of a task; None if it does not."""
    data = task.outcome.data if isinstance(task.outcome, Result) else None
    if not isinstance(data, dict) or data.keys() != {"message"}:
        return None
    try:
        said = ParseDict(data["message"], Message(), ignore_unknown_fields=True)
    except (ParseError, TypeError, ValueError):
        return None
    if not said.parts:
        return None
    made = _said(task, "")
    made.ClearField("task_id")
    made.parts.clear()
    made.parts.extend(said.parts)
    return made


def status_update(task: KeptTask, question: OpenQuestion | None = None) -> TaskStatusUpdateEvent:
    """The status of a task, as news."""
    context_id, status = str(task.about["contextId"]), status_of(task, question)
    return TaskStatusUpdateEvent(task_id=task.id, context_id=context_id, status=status)


def artifact_update(task: KeptTask, outcome: Result) -> TaskArtifactUpdateEvent:
    """What a task came to, as news."""
    context_id, artifact = str(task.about["contextId"]), _result_of(outcome)
    return TaskArtifactUpdateEvent(task_id=task.id, context_id=context_id, artifact=artifact, last_chunk=True)


def _result_of(outcome: Result) -> Artifact:
    return Artifact(artifact_id=RESULT, name=RESULT, parts=parts_of(outcome.data))


def chunk_update(task: KeptTask, chunk: Chunk, *, first: bool) -> TaskArtifactUpdateEvent:
    """A chunk; the `first` of an attempt takes the place of what came before."""
    return TaskArtifactUpdateEvent(
        task_id=task.id,
        context_id=str(task.about["contextId"]),
        artifact=Artifact(artifact_id=STREAM, name=STREAM, parts=parts_of(chunk.value)),
        append=not first,
    )


def _status(state: TaskState, at: float) -> TaskStatus:
    status = TaskStatus(state=state)
    status.timestamp.FromDatetime(datetime.fromtimestamp(at, UTC))
    return status


def _said(task: KeptTask, text: str) -> Message:
    return Message(
        message_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{task.id} {text}").hex,
        context_id=str(task.about["contextId"]),
        task_id=task.id,
        role=Role.ROLE_AGENT,
        parts=[new_text_part(text or "-")],
    )
