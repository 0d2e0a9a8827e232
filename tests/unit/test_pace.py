"""How often the processes of a local Ray look round."""

from __future__ import annotations

from squadron.bridge.serve.pace import calm


def test_what_somebody_has_set_for_ray_stays() -> None:
    ours, name = calm({}), "RAY_SERVE_CONTROL_LOOP_INTERVAL_S"
    assert calm({name: "0.1", "PATH": "/bin"}) == ours | {name: "0.1"}
    assert float(ours[name]) > 0.1
