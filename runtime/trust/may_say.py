"""Who may say what: a good signature says who it was, and no more."""

from __future__ import annotations

from squadron.runtime.errors import UntrustedError
from squadron.runtime.trust.guard import May
from squadron.runtime.trust.principals import Principal, Role
from squadron.runtime.trust.signature_check import Signed

#: Who keeps the environment, and writes what all others believe: cards, deployments, code.
KEEPERS: tuple[Role, ...] = ("bridge", "operator")
#: Who only looks on.
_SILENT: tuple[Role, ...] = ("observer",)


def check_role(principal: Principal, *roles: Role) -> None:
    """Check that a principal has one of these roles.

    Raises:
        UntrustedError: it has another.
    """
    if principal.role not in roles:
        raise UntrustedError(f"{principal.name} is {principal.role}, and not {' or '.join(roles)}")


def check_source(signed: Signed, source_id: str) -> None:
    """Check that who says a message is who it says it is, and may speak at all.

    Raises:
        UntrustedError: another signed it, or an observer.
    """
    author = signed.author
    if not author.covers(source_id):
        raise UntrustedError(f"{author.name} signed for {source_id[:80]!r}")
    if author.role in _SILENT:
        raise UntrustedError(f"{author.name} is {author.role}, and may only look on")


def check_carriers(signed: Signed, agent: str) -> None:
    """Check who has carried a task to an agent: itself, and operators who put it back.

    Raises:
        UntrustedError: somebody else did.
    """
    for by, carried in signed.carriers:
        if carried.redriven:
            check_role(by, "operator")
        elif not is_agent(by, agent):
            raise UntrustedError(f"{by.name} carries what is for {agent}")


def is_agent(principal: Principal, agent: str) -> bool:
    """Whether this is the agent of that name; the bridge serves what is bound to it."""
    return principal.role == "bridge" or (principal.role == "agent" and principal.name == agent)


def only(*roles: Role) -> May:
    """Who has one of these roles may."""
    return lambda signed: check_role(signed.by, *roles)


def only_agent(agent: str) -> May:
    """That agent may, and the bridge."""

    def may(signed: Signed) -> None:
        if not is_agent(signed.by, agent):
            raise UntrustedError(f"{signed.by.name} ({signed.by.role}) signed what is {agent}'s to say")

    return may


def speaks_as(source_id: str) -> May:
    """Who this source belongs to may."""
    return lambda signed: check_source(signed, source_id)
