"""How often the processes of a local Ray look round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from squadron.bridge.serve import pace
from squadron.bridge.serve.pace import adapt_controller, calm, seldom


def test_what_somebody_has_set_for_ray_stays() -> None:
    ours, name = calm({}), "RAY_SERVE_CONTROL_LOOP_INTERVAL_S"
    assert calm({name: "0.1", "PATH": "/bin"}) == ours | {name: "0.1"}
    assert float(ours[name]) > 0.1


def test_a_look_that_went_well_is_done_again_only_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = SimpleNamespace(now=100.0), []

    class Cache:
        def update(self) -> None:
            looks.append(clock.now)
            if len(looks) == 1:
                raise ConnectionError("the control store is away")

    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    look, one, other = seldom(Cache.update, 1.0), Cache(), Cache()
    with pytest.raises(ConnectionError):
        look(one)
    for clock.now in (100.25, 100.5, 101.0, 101.25, 101.5):
        look(one)
    assert looks == [100.0, 100.25, 101.25]
    look(other)
    assert looks[3:] == [101.5]


def test_serves_controller_asks_for_the_nodes_only_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private import application_state, cluster_node_info_cache

    monkeypatch.setattr(application_state, "build_serve_application", application_state.build_serve_application)
    cache: Any = cluster_node_info_cache.DefaultClusterNodeInfoCache
    monkeypatch.setattr(cluster_node_info_cache.ClusterNodeInfoCache, "update", cache.update)
    monkeypatch.setattr(pace, "NODES_EVERY_S", 3600.0)
    asked = Mock()
    asked.get_all_node_info.return_value = asked.get_draining_nodes.return_value = {}
    asked.get_all_resource_usage.return_value.resource_usage_data.batch = []

    adapt_controller()
    nodes = cache(asked)
    for _ in range(3):
        nodes.update()
    assert asked.get_all_node_info.call_count == 1
    assert nodes.get_alive_nodes() == []
