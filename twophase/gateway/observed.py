"""What can be seen from outside: Prometheus metrics, on an address of their own that devices do not reach."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from twophase.gateway.store import clip, device, halted

_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one gateway, and gauges that are read when someone looks."""

    def __init__(self, gauges: Callable[[], dict[str, float]]) -> None:
        """`gauges` names what is read at every look: `twophase_gateway_NAME`."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "twophase_gateway_requests", "Requests answered.", ("route", "code"), registry=self.registry
        )
        self._seconds = Histogram(
            "twophase_gateway_seconds", "Time to answer.", ("route",), buckets=_BUCKETS, registry=self.registry
        )
        self._refused = Counter(
            "twophase_gateway_refused_keys", "Requests whose proof was not accepted.", registry=self.registry
        )
        self.registry.register(_Gauges(gauges))

    def answered(self, route: str, code: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused_key(self) -> None:
        """Count one proof that was not accepted."""
        self._refused.inc()


def counts(c: Connection) -> dict[str, float]:
    """The gauges that the database knows."""
    clips = dict(map(tuple, c.execute(select(clip.c.state, func.count()).group_by(clip.c.state))))
    return {
        **{f"clips_{state}": float(clips.get(state, 0)) for state in ("receiving", "stored", "answered", "done")},
        "devices": float(c.scalar(select(func.count()).where(device.c.state == "active")) or 0),
        "releases_halted": float(c.scalar(select(func.count()).select_from(halted)) or 0),
    }


class _Gauges(Collector):
    def __init__(self, read: Callable[[], dict[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._read().items():
            yield GaugeMetricFamily(f"twophase_gateway_{name}", name.replace("_", " "), value=value)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(())  # asked when it is registered, before there is anything to read
