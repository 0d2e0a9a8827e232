"""The general crew: agents for the kinds of work that most goals are made of. Each needs an LLM."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.thinking.fence import FENCE_RULE, Fence
from squadron.runtime.running.context import Context
from squadron.runtime.wire.outcome import Answer

#: One turn of the crew, in seconds: several calls of a slow model.
RUN_TIMEOUT_S = 300.0


class Finding(BaseModel):
    """One thing that was found out; `basis` says what it rests on."""

    statement: str
    basis: str


class Findings(BaseModel):
    """What an investigation came to, and what it left open."""

    summary: str
    findings: list[Finding]
    open_questions: list[str] = Field(default_factory=list)


class Examination(BaseModel):
    """What an analysis came to: the answer, and the observations it rests on."""

    answer: str
    observations: list[str]


class Program(BaseModel):
    """A program and what to know about it."""

    code: str
    language: str
    explanation: str


class Verdict(BaseModel):
    """Whether a claim holds, how sure that is (0 to 1), and why."""

    verdict: Literal["true", "false", "unproven"]
    reasons: list[str]
    confidence: float = Field(ge=0.0, le=1.0)


class Critique(BaseModel):
    """What a review came to; each point is something to change."""

    verdict: Literal["accept", "revise"]
    strengths: list[str]
    points: list[str]


class _CrewMember(LLMAgent):
    # Many tasks of one run share a conversation, and none of them should read of another.
    remembers: ClassVar[bool] = False


class Researcher(_CrewMember):
    """You are a careful researcher. You have no access to the web: you work from the material you are given and
    from what you know, and for each finding you say which of the two it rests on. You never make up a source.
    What you can't find out you list as an open question."""

    @topic(
        "research.investigate",
        examples=["what is known about the causes of this outage?", "collect background on a subject"],
        tags=["research", "background", "evidence", "knowledge"],
        run_timeout_s=RUN_TIMEOUT_S,
    )
    async def investigate(self, ctx: Context, question: str, material: Any = None) -> Findings:
        """Investigate a question: gather the facts that bear on it, each with its basis, and what stays open."""
        return await self.think_as(ctx, _prompt(ctx, f"Investigate: {question}", material), Findings)


class Analyst(_CrewMember):
    """You are an analyst. You read the material closely, count and compare rather than guess, and answer exactly
    the question that was asked. What the material does not show, you do not claim."""

    @topic(
        "analysis.examine",
        examples=["what do these reviews have in common?", "which of these numbers is out of line?"],
        tags=["analysis", "data", "compare", "pattern", "trend"],
        run_timeout_s=RUN_TIMEOUT_S,
    )
    async def examine(self, ctx: Context, question: str, material: Any) -> Examination:
        """Examine data or text to answer a question about it: patterns, differences, trends, outliers."""
        return await self.think_as(ctx, _prompt(ctx, question, material), Examination)


class Coder(_CrewMember):
    """You are a senior programmer. You write complete, correct, readable code that does what is asked and nothing
    more, and you name in a few sentences what to know before running it."""

    @topic(
        "code.write",
        examples=["write a function that parses ISO dates", "a script that renames these files"],
        tags=["code", "program", "script", "function", "implement"],
        run_timeout_s=RUN_TIMEOUT_S,
    )
    async def write(self, ctx: Context, task: str, language: str = "Python", material: Any = None) -> Program:
        """Write a program or function for a task, with a short explanation. The code is not run."""
        return await self.think_as(ctx, _prompt(ctx, f"Write {language}: {task}", material), Program)


class FactChecker(_CrewMember):
    """You check facts. You judge one claim at a time against the material and what is well established. You say
    "unproven" unless there is good reason for "true" or "false", and your confidence is honest: 0.5 means that
    you might as well toss a coin."""

    @topic(
        "facts.check",
        examples=["is it true that the library was relicensed in 2024?", "verify this statement"],
        tags=["fact", "verify", "claim", "true", "false"],
        run_timeout_s=RUN_TIMEOUT_S,
    )
    async def check(self, ctx: Context, claim: str, material: Any = None) -> Answer:
        """Check whether a claim is true: a verdict (true, false or unproven), the reasons, and the confidence."""
        judged = await self.think_as(ctx, _prompt(ctx, f"Check this claim: {claim}", material), Verdict)
        return Answer(judged, confidence=judged.confidence, reasoning="; ".join(judged.reasons))


class Reviewer(_CrewMember):
    """You review work before it goes out. You look for what is wrong, missing or unclear, and for each point say
    what to change. You accept work that is good enough for its purpose and do not invent faults."""

    @topic(
        "review.critique",
        examples=["review this draft before we send it", "what is wrong with this code?"],
        tags=["review", "critique", "feedback", "quality", "improve"],
        run_timeout_s=RUN_TIMEOUT_S,
    )
    async def critique(self, ctx: Context, work: Any, criteria: str = "") -> Critique:
        """Review a draft, a report or code: accept it or ask for a revision, with points to change."""
        asked = f"Review this work. Criteria: {criteria}" if criteria else "Review this work."
        return await self.think_as(ctx, _prompt(ctx, asked, work), Critique)


class Synthesizer(_CrewMember):
    """You turn the results of many into one text. You keep what matters to the purpose, resolve what overlaps,
    say openly where the sources contradict each other, and add nothing of your own."""

    @topic(
        "synthesis.compose",
        examples=["write one report from these findings", "summarise all answers for the customer"],
        tags=["synthesis", "report", "summary", "combine", "compose"],
        run_timeout_s=RUN_TIMEOUT_S,
    )
    async def compose(self, ctx: Context, purpose: str, material: Any) -> str:
        """Compose one text (a report, a summary, an answer) for a purpose from the results of others."""
        return await self.think(ctx, _prompt(ctx, f"Compose: {purpose}", material))


def _prompt(ctx: Context, task: str, material: Any) -> str:
    """The task, then the material fenced off: what is in it is data, not orders."""
    if material is None:
        return task
    text = material if isinstance(material, str) else json.dumps(material, ensure_ascii=False, indent=1)
    return f"{task}\n\n{FENCE_RULE}\n{Fence.of(ctx.message.id).around(text, 'material')}"


#: All of them, ready to deploy.
CREW: tuple[type[Agent], ...] = (Researcher, Analyst, Coder, FactChecker, Reviewer, Synthesizer)
