"""The roles of an environment: which subjects each may publish on and hear, in the form of two accounts.

The streams and the bridge are in one account, everybody else is in the other, which reaches the first by imports:
within one account no list holds, because the server never checks where an answer is to go (`docs/security.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from squadron.bridge.jetstream.link.at_home import API_PREFIX as API_PREFIX
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.runtime.errors import ConfigError
from squadron.runtime.trust.principals import ROLES as ROLES
from squadron.runtime.trust.principals import Role as Role
from squadron.runtime.wire.subjects import ROOT, Subjects, check_pattern, check_token, life_of, live_of

#: What stands for the name in the lists of a template (scoped signing keys, ADR-27 of NATS), and for the groups
#: of durable events that a user is a member of: its tags `group:NAME`; and for the topics that it serves.
NAME, KEY, GROUPS, SERVED = "{{name()}}", "{{subject()}}", "{{tag(group)}}", "{{tag(serves)}}"
#: What lists are made for, to have `NAME`, `KEY` and `SERVED` put in their place.
_STAND_IN, _KEY_STAND_IN, _SERVED_STAND_IN = "NAME-is-put-in-here", "KEY-is-put-in-here", "SERVED.is-put-in-here"
#: Tokens of the lanes that have one, and names of the consumers that they have.
_LANES = tuple(f"p{priority}" for priority in range(10))
#: How many answers to one message may be given, and for how long: a bidder tells of its bid and of its withdrawal.
ANSWERS, ANSWER_WITHIN = 16, "2m"


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects that one user may publish on, and hear; and whether it may answer where it is asked to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False

    def permissions(self) -> dict[str, Any]:
        """As a server's configuration has them, at a user."""
        publish, subscribe = {"allow": [*self.publish]}, {"allow": [*self.subscribe]}
        answers = {"allow_responses": {"max": ANSWERS, "expires": ANSWER_WITHIN}} if self.answers else {}
        # Without any it would be allowed all.
        return {"publish": publish if self.publish else {"deny": [">"]}, "subscribe": subscribe, **answers}

    def template(self) -> dict[str, Any]:
        """As a JWT has them: the permissions of a user, or the template of a scoped signing key."""
        answers = {"resp": {"max": ANSWERS, "ttl": 120_000_000_000}} if self.answers else {}
        publish = {"allow": [*self.publish]} if self.publish else {"deny": [">"]}
        return {"pub": publish, "sub": {"allow": [*self.subscribe]}, **answers}


def inbox_prefix(name: str) -> str:
    """The setting `nats_inbox_prefix` of whoever has this name: others can't hear its answers."""
    return f"_INBOX_{name}"


def rights(
    role: Role,
    name: str,
    environment: str,
    *,
    asks: Sequence[str] = ("*.*",),
    groups: Sequence[str] = (),
    serves: Sequence[str] = ("*.*",),
    ordered: bool = False,
    key: str = "",
) -> Rights | None:
    """What a user of this role and name may; None for the bridge, which may all in its account.

    Args:
        name: of the agent for its replicas.
        asks: the topics that it may ask, or patterns of such.
        groups: of durable events that it is a member of, as `NAME` or, for an agent, `AGENT.METHOD`.
        serves: the topics of an agent, or patterns of such: it hears of tasks with a priority there.
        ordered: whether it is an agent with `ordered_by`.
        key: its public key, if it signs: others look up there whose it is. By default any.

    Raises:
        ConfigError: there is no such role.
        InvalidSubjectError: a name or pattern breaks the grammar.
    """
    if role == "bridge":
        return None
    lists = _Lists(Subjects(environment), StreamNames(environment), check_token(name, "name"), key)
    asked, served = ([check_pattern(each) for each in topics] for topics in (asks, serves))
    match role:
        case "agent":
            return lists.agent(asked, groups, served, ordered)
        case "client" | "gateway":
            return lists.client(asked, groups)
        case "operator":
            return lists.operator(asked, groups)
        case "observer":
            return lists.observer()
        case "foreign":
            return lists.foreign(asked)
    raise ConfigError(f"{role!r} is no role", hint=f"one of {', '.join(ROLES)}")


def template(role: Role, environment: str, *, ordered: bool = False) -> dict[str, Any]:
    """The `template` of a signing key that vouches for users of this role: their names stand in its lists.

    Raises:
        ConfigError: there is no such role, or it is the bridge, which needs none.
    """
    open_ends: dict[str, Any] = {"groups": (GROUPS,), "serves": (_SERVED_STAND_IN,), "key": _KEY_STAND_IN}
    made = rights(role, _STAND_IN, environment, ordered=ordered, **open_ends)
    if made is None:
        raise ConfigError("the bridge has no template", hint="its user is of the account of the streams")

    def named(subjects: tuple[str, ...]) -> tuple[str, ...]:
        ends = ((_STAND_IN, NAME), (_KEY_STAND_IN, KEY), (_SERVED_STAND_IN, SERVED))
        return tuple(reduce(lambda text, end: text.replace(*end), ends, each) for each in subjects)

    return Rights(named(made.publish), named(made.subscribe), made.answers).template()


@dataclass(frozen=True, slots=True)
class _Lists:
    subjects: Subjects
    names: StreamNames
    name: str
    key: str

    def agent(self, asks: Iterable[str], groups: Iterable[str], serves: Iterable[str], ordered: bool) -> Rights:
        """A replica: takes from its agent's mailbox, answers, and asks."""
        s, tasks, name = self.subjects, self.names.tasks, self.name
        lanes = [f"{tasks}.{name}={lane}" for lane in _LANES]
        consumers = [f"{tasks}.{name}", *lanes]
        publish = [
            *self._asking(asks),
            *self._member(groups),
            # Lanes alone: the mailbox itself is made by the bridge.
            *_api(f"CONSUMER.CREATE.{lane}" for lane in lanes),
            *_api(f"CONSUMER.MSG.NEXT.{each}" for each in consumers),
            *(f"$JS.ACK.{each}.>" for each in consumers),
            s.presence(name, "*"),
            _any(s.stream),
            s.result("*.*"),
            s.dead_of(name),
        ]
        if ordered:
            publish += [
                *_api(f"STREAM.MSG.{verb}.{tasks}" for verb in ("GET", "DELETE")),
                *_api(f"CONSUMER.{verb}.{tasks}.{name}=tickets" for verb in ("INFO", "CREATE", "MSG.NEXT")),
                f"$JS.ACK.{tasks}.{name}=tickets.>",
                s.line(name),
                s.tickets(name),
            ]
        tasks_heard = [f"{s.task(topic)}.*" for topic in serves]
        lanes_heard = [*tasks_heard, *(each.replace(".task.", ".query.", 1) for each in tasks_heard)]
        hears = [*self._hearing(), *lanes_heard, _any(s.hand), _any(s.negotiate)]
        return Rights(_once(publish), _once(hears), answers=True)

    def client(self, asks: Iterable[str], groups: Iterable[str]) -> Rights:
        """Asks, follows lite topics, publishes and hears events; a gateway does no more."""
        # Where no agent is yet, it has to know whether there is an environment at all.
        publish = [
            *self._asking(asks),
            *self._member(groups),
            *map(self.subjects.control, ("ping", "search", "prefer")),
        ]
        return Rights(_once(publish), _once(self._hearing()))

    def operator(self, asks: Iterable[str], groups: Iterable[str]) -> Rights:
        """A client that has agents run, and looks after what went wrong; sees all that passes."""
        s, n = self.subjects, self.names
        streams = (n.tasks, n.dead, n.events, n.audit, n.intake)
        publish = [
            *self._asking(asks),
            *self._member(groups),
            s.control("*"),
            _any_of(s.record, "blob"),
            # Of a dead letter that is dropped, and of an agent's mailbox that the doctor looks at.
            *_api(f"STREAM.PURGE.{each}" for each in (n.dead, n.runs)),
            *_api((f"CONSUMER.LIST.{n.tasks}", f"CONSUMER.LIST.{n.events}", f"CONSUMER.LIST.{n.intake}", "INFO")),
            *_api(f"STREAM.INFO.{each}" for each in (*streams, n.registry, n.runs, f"OBJ_{n.bucket}")),
            *self._reading(*streams),
        ]
        return Rights(_once(publish), _once([*self._hearing(), s.all]))

    def observer(self) -> Rights:
        """A console: what agents there are and how they fare, and no contents."""
        s, n = self.subjects, self.names
        publish = [
            self._own_key,
            *self._reading(n.registry),
            *_api(f"STREAM.INFO.{each}" for each in (n.tasks, n.registry)),
            *(s.control(verb) for verb in ("ping", "status", "metrics", "nodes", "search")),
        ]
        return Rights(_once(publish), _once([self._inbox, *self._registry(), s.event("status.*")]))

    def foreign(self, asks: Iterable[str]) -> Rights:
        """A program in any language that speaks the protocol: asks, and hears and reads its own lite topics."""
        s, own = self.subjects, self.subjects.lite_of(self.name)
        publish = [*self._putting(asks), own, *_api([f"DIRECT.GET.{self.names.lite}.{own}"])]
        cancels = s.lite_of("cancel")
        return Rights(_once([*publish, cancels]), _once([self._inbox, own, live_of(own)]))

    @property
    def _own_key(self) -> str:
        return self.subjects.record("key", self.key) if self.key else _any_of(self.subjects.record, "key")

    @property
    def _inbox(self) -> str:
        return f"{inbox_prefix(self.name)}.>"

    def _putting(self, asks: Iterable[str]) -> list[str]:
        # A query is a task by another name.
        plain = [self.subjects.task(topic) for topic in asks]
        tasks = [*plain, *(f"{each}.*" for each in plain)]
        return [*tasks, *(each.replace(".task.", ".query.", 1) for each in tasks)]

    def _asking(self, asks: Iterable[str]) -> list[str]:
        """What everybody does who has a `Caller`."""
        s, n = self.subjects, self.names
        return [
            *self._putting(asks),
            s.lite_of(),
            life_of(s.lite_of()),
            s.run(),
            s.event("*.*"),
            s.durable("*.*"),
            self._own_key,
            f"$O.{n.bucket}.>",
            _any(s.hand),
            _any(s.negotiate),
            *(f"{ROOT}.{s.environment}.filed.{kind}" for kind in ("sent.>", "action.*")),
            *self._reading(n.lite, n.registry, n.runs, n.events, f"OBJ_{n.bucket}"),
            *_api(f"STREAM.INFO.{each}" for each in (n.tasks, n.lite, n.events, n.intake)),
            *_api(f"STREAM.PURGE.{each}" for each in (n.lite, f"OBJ_{n.bucket}")),
            *_api([f"CONSUMER.INFO.{n.tasks}.*"]),
        ]

    def _reading(self, *streams: str) -> list[str]:
        calls = (f"DIRECT.GET.{stream}" for stream in streams)
        return [each for call in calls for each in _api((call, f"{call}.>"))]

    def _member(self, groups: Iterable[str]) -> list[str]:
        # An agent's group has a dot, which a consumer must not.
        consumers = [f"{self.names.events}.{group.replace('.', '=')}" for group in groups]
        verbs = ("CREATE", "INFO", "DELETE", "MSG.NEXT")
        calls = _api(f"CONSUMER.{verb}.{each}" for each in consumers for verb in verbs)
        return [*calls, *(f"$JS.ACK.{each}.>" for each in consumers)]

    def _registry(self) -> list[str]:
        return [live_of(self.subjects.registry(kind)) for kind in ("card", "presence")]

    def _hearing(self) -> list[str]:
        s = self.subjects
        live = live_of(s.lite_of())
        return [self._inbox, *self._registry(), live, s.event("*.*"), _any(s.stream), s.result("*.*")]


def _api(calls: Iterable[str]) -> list[str]:
    return [f"{API_PREFIX}.{call}" for call in calls]


def _any(subject_of: Callable[[str], str]) -> str:
    """The pattern of all subjects of this kind."""
    return subject_of("x").removesuffix("x") + "*"


def _any_of(subject_of: Callable[[str, str], str], kind: str) -> str:
    return _any(partial(subject_of, kind))


def _once(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subjects))
