"""Sealed payloads on a real cluster: the bridge makes the keys, replicas are given them, and nobody else."""

from __future__ import annotations

from pathlib import Path

from squadron import Agent, Context, Rejected, Squad, topic
from squadron.runtime.trust.ring_file import read_ring
from tests.cluster.conftest import until

CANARY = "planted-canary-9c02"
PLAIN = "plain-canary-31be"


class Confessor(Agent):
    """Listens."""

    min_replicas = 2

    @topic("confess.hear", sealed=True)
    async def hear(self, text: str, ctx: Context) -> str:
        """Hear it, and say it again."""
        await ctx.emit(text)
        return f"{text} {ctx.is_sealed}"

    @topic("confess.gossip")
    async def gossip(self, text: str) -> str:
        """Say it to everybody."""
        return text


def files_with(folder: Path, words: bytes) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                found += [path] if words in path.read_bytes() else []
            except OSError:
                continue
    return found


async def test_sealed_tasks_run_on_ray_with_keys_of_the_bridge_and_leave_no_trace(squad: Squad) -> None:
    await squad.deploy(Confessor)
    keys = squad.settings.home / "keys" / squad.settings.env
    ring = read_ring(keys / "agents" / "confessor.json")
    [card] = [card for card in squad._wiring.registry.cards() if card.agent == "confessor"]
    assert {each.seal_key for each in card.topics} == {str(ring.public)}

    assert (await squad.ask("confess.gossip", {"text": PLAIN}, within_s=60)).unwrap() == PLAIN
    handle = await squad.submit("confess.hear", {"text": CANARY}, within_s=60)
    assert [chunk async for chunk in handle.chunks()] == [CANARY]
    assert (await handle.outcome()).unwrap() == f"{CANARY} True"
    large = f"{CANARY} " * 60_000
    assert (await squad.ask("confess.hear", {"text": large}, within_s=60)).unwrap() == f"{large} True"
    assert isinstance(await squad.ask("confess.hear", {"word": CANARY}, within_s=60), Rejected)

    # Replicas go on with the new key, and need no restart for it.
    before = set(squad._wiring.registry.replicas("confessor"))
    kid = await squad.rotate_key("confessor")
    rotated = read_ring(keys / "agents" / "confessor.json")
    assert rotated.kids == [kid, *ring.kids]

    async def is_told() -> bool:
        found = squad._wiring.registry.find("confess.hear")
        return found is not None and found.seal_key == str(rotated.public)

    await until(is_told)
    for _ in range(8):
        assert (await squad.ask("confess.hear", {"text": CANARY}, within_s=60)).ok
    assert set(squad._wiring.registry.replicas("confessor")) == before

    home = squad.settings.home
    assert files_with(home, PLAIN.encode())
    assert not files_with(home, CANARY.encode())
    seeds = rotated.to_wire()["keys"]
    assert len(seeds) == 2
    for seed in seeds:
        assert files_with(home, seed.encode()) == [keys / "agents" / "confessor.json"]
