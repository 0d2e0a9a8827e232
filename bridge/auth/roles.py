"""The roles of an environment: which subjects each may publish on and hear, in the form of two accounts.

The streams and the bridge are in one account, everybody else is in the other, which reaches the first by imports:
within one account no list holds, because the server never checks where an answer is to go (`docs/security.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

from squadron.bridge.jetstream.link.at_home import API_PREFIX as API_PREFIX
from squadron.bridge.jetstream.link.at_home import inbox_prefix as inbox_prefix
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.status_relay import STATUS, own_status
from squadron.runtime.errors import ConfigError
from squadron.runtime.trust.principals import ROLES as ROLES
from squadron.runtime.trust.principals import Role as Role
from squadron.runtime.wire.subjects import ROOT, Subjects, check_pattern, check_token, life_of, live_of

#: What stands for the name in the lists of a template (scoped signing keys, ADR-27 of NATS), and for the groups
#: of durable events that a user is a member of: its tags `group:NAME`; for the topics that it serves, and for who
#: speaks another protocol: its tags `mcp:ID`, `synadia:…` with `service:agents`, `prompts:…` with `finds:agents`.
NAME, KEY, GROUPS, SERVED = "{{name()}}", "{{subject()}}", "{{tag(group)}}", "{{tag(serves)}}"
MCP_ID, SYNADIA_PEER, SERVICE = "{{tag(mcp)}}", "{{tag(synadia)}}", "{{tag(service)}}"
PROMPTED, FINDS = "{{tag(prompts)}}", "{{tag(finds)}}"
#: What lists are made for, to have what is above put in their place.
_STAND_IN, _KEY_STAND_IN, _SERVED_STAND_IN = "NAME-is-put-in-here", "KEY-is-put-in-here", "SERVED.is-put-in-here"
_MCP_STAND_IN, _SYNADIA_STAND_IN = "MCP-is-put-in-here", "SYNADIA.is-put-in-here"
_SERVICE_STAND_IN = "SERVICE-is-put-in-here"
_PROMPTED_STAND_IN, _FINDS_STAND_IN = "PROMPTED.is-put-in-here", "FINDS-is-put-in-here"
#: Tokens of the lanes that have one, and names of the consumers that they have.
_LANES = tuple(f"p{priority}" for priority in range(10))
#: How many answers to one message may be given, and for how long: a bidder tells of its bid and of its withdrawal.
ANSWERS, ANSWER_WITHIN = 16, "2m"

#: Where all callers of the Synadia Agent Protocol are answered; its clients know no other inboxes.
SYNADIA_INBOXES = "_INBOX.agents"
#: Where agents of ours are answered that prompt others, and foreign programs: below this comes the asker's name.
PEER_INBOXES = "_INBOX.our-agents"
#: Where those are answered who ask MCP servers on the bus: below this come the server's id and the asker's name.
MCP_INBOXES = "_INBOX.mcp"
#: Kinds of those who speak another protocol.
PEERS = ("mcp", "synadia", "prompts")
#: The service that each agent of the Synadia Agent Protocol is an instance of.
_SYNADIA = "agents"


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects that one user may publish on, and hear; and whether it may answer where it is asked to.

    Attributes:
        never: subjects that it may not publish on all the same.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False
    never: tuple[str, ...] = ()

    def permissions(self) -> dict[str, Any]:
        """As a server's configuration has them, at a user."""
        answers = {"allow_responses": {"max": ANSWERS, "expires": ANSWER_WITHIN}} if self.answers else {}
        return {"publish": self._published(), "subscribe": {"allow": [*self.subscribe]}, **answers}

    def template(self) -> dict[str, Any]:
        """As a JWT has them: the permissions of a user, or the template of a scoped signing key."""
        answers = {"resp": {"max": ANSWERS, "ttl": 120_000_000_000}} if self.answers else {}
        return {"pub": self._published(), "sub": {"allow": [*self.subscribe]}, **answers}

    def _published(self) -> dict[str, list[str]]:
        # Without any it would be allowed all.
        never = {"deny": [*self.never]} if self.never else {}
        return {"allow": [*self.publish], **never} if self.publish else {"deny": [">"]}


def rights(
    role: Role,
    name: str,
    environment: str,
    *,
    asks: Sequence[str] = ("*.*",),
    groups: Sequence[str] = (),
    serves: Sequence[str] = ("*.*",),
    peers: Sequence[str] = (),
    ordered: bool = False,
    key: str = "",
) -> Rights | None:
    """What a user of this role and name may; None for the bridge, which may all in its account.

    Args:
        name: of the agent for its replicas.
        asks: the topics that it may ask, or patterns of such.
        groups: of durable events that it is a member of, as `NAME` or, for an agent, `AGENT.METHOD`.
        serves: the topics of an agent, or patterns of such: it hears of tasks with a priority there.
        peers: of other protocols, see `check_peer`: an agent asks those, a gateway answers as that MCP server, a
            foreign program as those agents of the Synadia Agent Protocol, or prompts those.
        ordered: whether it is an agent with `ordered_by`.
        key: its public key, if it signs: others look up there whose it is. By default any.

    Raises:
        ConfigError: there is no such role, or a peer is of no protocol.
        InvalidSubjectError: a name or pattern breaks the grammar.
    """
    if role == "bridge":
        return None
    known = _Peers.of(peers)
    lists = _Lists(Subjects(environment), StreamNames(environment), check_token(name, "name"), key)
    asked, served = ([check_pattern(each) for each in topics] for topics in (asks, serves))
    match role:
        case "agent":
            return lists.agent(asked, groups, served, known, ordered)
        case "client":
            return lists.client(asked, groups)
        case "gateway":
            return lists.gateway(asked, groups, known)
        case "operator":
            return lists.operator(asked, groups)
        case "observer":
            return lists.observer()
        case "foreign":
            return lists.foreign(asked, known)
    raise ConfigError(f"{role!r} is no role", hint=f"one of {', '.join(ROLES)}")


@dataclass(frozen=True, slots=True)
class _Peers:
    """Who speaks another protocol: ids of MCP servers, and patterns of Synadia agents.

    Attributes:
        prompts: of Synadia agents, too: those that a foreign program prompts.
        service, finds: what `synadia` and `prompts` are an instance of, if there are any.
    """

    mcp: list[str]
    synadia: list[str]
    service: tuple[str, ...]
    prompts: list[str]
    finds: tuple[str, ...]

    @classmethod
    def of(cls, peers: Iterable[str]) -> _Peers:
        split = [check_peer(each).partition(":") for each in peers]
        mcp, synadia, prompts = ([name for kind, _, name in split if kind == wanted] for wanted in PEERS)
        service = _SERVICE_STAND_IN if _SYNADIA_STAND_IN in synadia else _SYNADIA
        finds = _FINDS_STAND_IN if _PROMPTED_STAND_IN in prompts else _SYNADIA
        return cls(mcp, synadia, (service,) if synadia else (), prompts, (finds,) if prompts else ())


def check_peer(peer: str) -> str:
    """The name of a peer: `mcp:ID`, or `synadia:` or `prompts:AGENT.OWNER`, either part of which may be `*`.

    Raises:
        ConfigError: it is none.
        InvalidSubjectError: it can't stand in a subject.
    """
    kind, _, name = peer.partition(":")
    if kind == "mcp":
        check_token(name, "server")
    elif kind in PEERS:
        check_pattern(name)
    else:
        raise ConfigError(f"{peer[:100]!r} is no peer", hint="mcp:ID, synadia:AGENT.OWNER, or prompts:AGENT.OWNER")
    return peer


def template(role: Role, environment: str, *, ordered: bool = False) -> dict[str, Any]:
    """The `template` of a signing key that vouches for users of this role: their names stand in its lists.

    Raises:
        ConfigError: there is no such role, or it is the bridge, which needs none.
    """
    peers = (f"mcp:{_MCP_STAND_IN}", f"synadia:{_SYNADIA_STAND_IN}", f"prompts:{_PROMPTED_STAND_IN}")
    open_ends: dict[str, Any] = {"groups": (GROUPS,), "serves": (_SERVED_STAND_IN,), "key": _KEY_STAND_IN}
    open_ends["peers"] = peers
    made = rights(role, _STAND_IN, environment, ordered=ordered, **open_ends)
    if made is None:
        raise ConfigError("the bridge has no template", hint="its user is of the account of the streams")

    def named(subjects: tuple[str, ...]) -> tuple[str, ...]:
        ends = (
            *((_STAND_IN, NAME), (_KEY_STAND_IN, KEY), (_SERVED_STAND_IN, SERVED)),
            *((_MCP_STAND_IN, MCP_ID), (_SYNADIA_STAND_IN, SYNADIA_PEER), (_SERVICE_STAND_IN, SERVICE)),
            *((_PROMPTED_STAND_IN, PROMPTED), (_FINDS_STAND_IN, FINDS)),
        )
        return tuple(reduce(lambda text, end: text.replace(*end), ends, each) for each in subjects)

    return replace(made, publish=named(made.publish), subscribe=named(made.subscribe)).template()


@dataclass(frozen=True, slots=True)
class _Lists:
    subjects: Subjects
    names: StreamNames
    name: str
    key: str

    def agent(
        self, asks: Iterable[str], groups: Iterable[str], serves: Iterable[str], peers: _Peers, ordered: bool
    ) -> Rights:
        """A replica: takes from its agent's mailbox, answers, and asks."""
        s, tasks, name = self.subjects, self.names.tasks, self.name
        line = self.names.line(name)
        # The bridge makes them.
        consumers = [f"{tasks}.{name}", *(f"{tasks}.{name}={lane}" for lane in _LANES)]
        publish = [
            *self._asking(asks),
            *self._member(groups),
            *_api(f"CONSUMER.MSG.NEXT.{each}" for each in consumers),
            *(f"$JS.ACK.{each}.>" for each in consumers),
            s.presence(name, "*"),
            own_status(s.environment, name, "*"),
            *map(s.control, ("search", "prefer")),
            _any(s.stream),
            s.result("*.*"),
            s.dead_of(name),
            # What a server can do that it stands for.
            s.control(f"offer.{name}"),
            f"{ROOT}.{s.environment}.own.{name}.>",
            *self._reading(self.names.own(name)),
            # It forgets.
            *_api([f"STREAM.PURGE.{self.names.own(name)}"]),
            *(s.mcp(each, cancel=cancel) for each in peers.mcp for cancel in (False, True)),
            *(f"{ROOT}.prompt.{each}.*" for each in peers.synadia),
            *(f"$SRV.INFO.{each}" for each in peers.service),
        ]
        if ordered:
            publish += [
                *_api(f"STREAM.MSG.{verb}.{line}" for verb in ("GET", "DELETE")),
                # The last: its tasks are read by one replica at a time, which leaves that to the next.
                *_api([f"CONSUMER.MSG.NEXT.{line}.{name}=tickets", f"CONSUMER.UNPIN.{tasks}.{name}"]),
                f"$JS.ACK.{line}.{name}=tickets.>",
                s.line(name),
                s.tickets(name),
            ]
        tasks_heard = [f"{s.task(topic)}.*" for topic in serves]
        lanes_heard = [*tasks_heard, *(each.replace(".task.", ".query.", 1) for each in tasks_heard)]
        hears = [*self._hearing(), *lanes_heard, _any(s.hand), _any(s.negotiate), *self._foreign_inboxes]
        hears += [f"{ROOT}.hb.{each}.*" for each in peers.synadia]
        return Rights(_once(publish), _once(hears), answers=True, never=self._status)

    def client(self, asks: Iterable[str], groups: Iterable[str]) -> Rights:
        """Asks, follows lite topics, publishes and hears events."""
        # Where no agent is yet, it has to know whether there is an environment at all.
        publish = [
            *self._asking(asks),
            *self._member(groups),
            *map(self.subjects.control, ("ping", "search", "prefer", "lessons", "track")),
            *self._reading(self.names.runs),
        ]
        return Rights(_once(publish), _once(self._hearing()), never=self._status)

    def gateway(self, asks: Iterable[str], groups: Iterable[str], peers: _Peers) -> Rights:
        """A client that answers callers of other protocols, too, who have inboxes of a kind."""
        mine, client = f"*.squadron-{self.subjects.environment}.*", self.client(asks, groups)
        publish = [*client.publish, f"{ROOT}.hb.{mine}", f"{SYNADIA_INBOXES}.>", f"{PEER_INBOXES}.>"]
        publish += [f"{MCP_INBOXES}.{each}.>" for each in peers.mcp]
        hears = [*client.subscribe, *(f"{ROOT}.{verb}.{mine}" for verb in ("prompt", "status"))]
        hears += ["$SRV.*", f"$SRV.*.{_SYNADIA}", f"$SRV.*.{_SYNADIA}.*"]
        hears += [self.subjects.mcp(each, cancel=cancel) for each in peers.mcp for cancel in (False, True)]
        return Rights(_once(publish), _once(hears), never=self._status)

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
            *self._reading(*streams, n.runs),
            # It looks at what it adds.
            *(f"{ROOT}.{s.environment}.mcp.*{which}" for which in ("", ".cancel")),
            f"$SRV.INFO.{_SYNADIA}",
        ]
        hears = _once([*self._hearing(), s.all, *self._foreign_inboxes])
        return Rights(_once(publish), hears, never=self._status)

    def observer(self) -> Rights:
        """A console: what agents there are and how they fare, and no contents."""
        s, n = self.subjects, self.names
        publish = [
            self._own_key,
            *self._reading(n.registry),
            *_api([f"STREAM.INFO.{n.registry}"]),
            *(s.control(verb) for verb in ("ping", "status", "metrics", "nodes", "search", "lessons", "track")),
        ]
        return Rights(_once(publish), _once([self._inbox, *self._registry(), s.event("status.*")]))

    def foreign(self, asks: Iterable[str], peers: _Peers) -> Rights:
        """A program in any language that speaks the protocol: asks, and hears and reads its own lite topics.

        Or one of the Synadia Agent Protocol: prompted as an agent, or prompting some, with inboxes of its own.
        """
        s, own = self.subjects, self.subjects.lite_of(self.name)
        publish = [*self._putting(asks), own, *_api([f"DIRECT.GET.{self.names.lite}.{own}"])]
        publish += [s.lite_of("cancel"), *(f"{ROOT}.hb.{each}.*" for each in peers.synadia)]
        hears = [self._inbox, own, live_of(own)]
        hears += [f"{ROOT}.{verb}.{each}.*" for verb in ("prompt", "status") for each in peers.synadia]
        for service in peers.service:
            publish += [f"_INBOX.{service}.>", f"_INBOX.our-{service}.>"]
            hears += [f"$SRV.*.{service}", f"$SRV.*.{service}.*"]
        publish += [f"{ROOT}.{verb}.{each}.*" for verb in ("prompt", "status") for each in peers.prompts]
        publish += ["$SYS.REQ.USER.INFO", *(f"$SRV.INFO.{each}" for each in peers.finds)]
        # `PEER_INBOXES`, and heartbeats, of all or none. Before they sign its clients ask the server who they are.
        hears += [f"{each}.hb.*.*.*" for each in peers.finds]
        hears += [f"_INBOX.our-{each}.{self.name}.>" for each in peers.finds]
        return Rights(_once(publish), _once(hears))

    @property
    def _status(self) -> tuple[str, ...]:
        """What the bridge tells of replicas: of whom stands in no subject that a list could hold to."""
        events = [f"status.{event}" for event in STATUS]
        return tuple(told(event) for told in (self.subjects.event, self.subjects.durable) for event in events)

    @property
    def _own_key(self) -> str:
        return self.subjects.record("key", self.key) if self.key else _any_of(self.subjects.record, "key")

    @property
    def _inbox(self) -> str:
        return f"{inbox_prefix(self.name)}.>"

    @property
    def _foreign_inboxes(self) -> tuple[str, ...]:
        """Where servers of other protocols answer it, which may publish nowhere else."""
        return f"{MCP_INBOXES}.*.{self.name}.>", f"{PEER_INBOXES}.{self.name}.>"

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
            s.event("*.*"),
            s.durable("*.*"),
            self._own_key,
            # Its own place among large payloads: it puts there, and the bridge removes.
            *(f"$O.{n.bucket}.{kind}.{self.name}.>" for kind in "CM"),
            n.forget,
            _any(s.hand),
            _any(s.negotiate),
            *(f"{ROOT}.{s.environment}.filed.{kind}" for kind in ("sent.>", "action.*")),
            *self._reading(n.lite, n.registry, n.events, f"OBJ_{n.bucket}"),
            *_api(f"STREAM.INFO.{each}" for each in (n.registry, n.lite, n.events, n.intake)),
            *_api([f"STREAM.PURGE.{n.lite}"]),
            # How full a mailbox is: of one in order that is said by a stream of its own.
            *_api(["CONSUMER.INFO.*.*"]),
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
