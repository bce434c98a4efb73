"""What of the measurements of the service stands in the documentation."""

from statistics import median
from typing import Any


def rows_of(what: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What stands in the documentation."""
    if what == "soak":
        return [
            {
                "minutes": result["minutes"],
                "texts": result["texts"],
                "delay p50, s": result["delay_s"]["p50"],
                "delay p95, s": result["delay_s"]["p95"],
                "delay, s per hour": _interval(result["delay_slope_s_per_hour"], 4),
                "memory, MiB per hour": _interval(result["memory_slope_mib_per_hour"], 1),
                "overloads": result["overloads"],
            }
        ]
    if what == "load":
        return [{"measure": name, "value": value} for name, value in _load(result).items()]
    if what == "uploads":
        return [
            {
                "requests": sum(result["statuses"].values()),
                **{f"status {status}": count for status, count in sorted(result["statuses"].items())},
                "lost": result["lost"],
                "not honest": len(result["refusals that were not honest"]),
                "seconds": result["seconds"],
                "answer p50, s": result["answer_s"]["p50"],
                "answer p95, s": result["answer_s"]["p95"],
                "memory, MiB": result["memory_mib"],
            }
        ]
    if what == "curve":
        return _curve(result["trials"])
    return [
        {
            "way": one["way"],
            "sessions": one["sessions"],
            "held": "yes" if one["held"] else "no",
            "first text p50, s": (one["first_text_s"] or {}).get("p50", ""),
            "first text p95, s": (one["first_text_s"] or {}).get("p95", ""),
            "delay p95, s": (one["delay_s"] or {}).get("p95", ""),
            "memory, MiB": one["memory_mib"],
        }
        for one in sorted(result["trials"], key=lambda one: (one["way"] != "one service", one["sessions"]))
    ]


def _curve(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians and ranges over rounds; requests also as a share of those of the first service in the same round."""
    of: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in sorted(trials, key=lambda one: one["round"]):
        of.setdefault((one["way"], one["clients"]), []).append(one)
    first = trials[0]["way"]
    return [
        {
            "service": way,
            "clients": clients,
            "requests a second": _spread([one["requests_per_s"] for one in own]),
            "of the first's": _spread(
                [
                    one["requests_per_s"] / ours["requests_per_s"]
                    for one, ours in zip(own, of[first, clients], strict=True)
                ]
            ),
            "answer p50, s": _spread([one["answer_s"]["p50"] for one in own]),
            "answer p95, s": _spread([one["answer_s"]["p95"] for one in own]),
            "memory, MiB": round(max(one["memory_mib"] for one in own)),
        }
        for (way, clients), own in sorted(
            of.items(), key=lambda item: [one["way"] for one in trials].index(item[0][0])
        )
    ]


def _spread(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _load(result: dict[str, Any]) -> dict[str, str]:
    """An hour of everything at once, line by line."""
    requests, cores, memory = result["requests"], result["cores"], result["memory_mib"]
    delay_s, seen_s, late_s = result["delay_s"], result["delay_seen_by_clients_s"], result["clients_late_s"]
    machine = result["manifest"]["machine"]
    return {
        "minutes": f"{result['minutes']:g}",
        "live sessions at once (asked for)": f"{result['live sessions at once']} ({result['live sessions asked for']})",
        "live sessions": f"{result['sessions']}",
        "texts": f"{result['texts']}",
        "uploads, answered, asked to retry": ", ".join(
            str(requests.get(name, 0)) for name in ("requests", "answered", "asked to retry")
        ),
        "**sessions and requests lost**": f"{result['lost']}",
        "speech left out, s": f"{result['speech left out, s']:g}",
        "notices of overload": f"{result['overloads']}",
        **{name: str(number) for name, number in result["slow and vanishing clients"].items()},
        "delay p50, p95, most, s": _three(delay_s),
        "delay as seen by clients p50, p95, most, s": _three(seen_s),
        "clients late with their sound p50, p95, most, s": _three(late_s),
        "answer to an upload p50, p95, most, s": _three(result["answer_s"]),
        "memory first, last, largest, MiB": f"{memory['first']:.0f}, {memory['last']:.0f}, {memory['largest']:.0f}",
        "memory, MiB per hour": _interval(result["memory_slope_mib_per_hour"], 1),
        "cores in use: service, clients, other programs": ", ".join(
            f"{cores[name]:.2f}" for name in ("service", "clients", "others")
        ),
        "held": "yes" if result["held"] else "no",
        "idle before": "yes" if result["idle"] else f"no ({cores['others before']:.2f} cores in use)",
        "machine": f"{machine['processor']}, {machine['cores']} cores",
    }


def _three(values: dict[str, float] | None) -> str:
    return "" if values is None else ", ".join(f"{values[name]:.3g}" for name in ("p50", "p95", "p100"))


def _interval(slope: dict[str, float] | None, digits: int) -> str:
    if slope is None:
        return ""
    return f"{slope['slope']:.{digits}f} ({slope['low']:.{digits}f} to {slope['high']:.{digits}f})"
