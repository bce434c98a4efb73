"""What of the measurements of the service stands in the documentation."""

from typing import Any


def rows_of(what: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What stands in the documentation."""
    if what == "soak":
        return [
            {
                "minutes": found["minutes"],
                "texts": found["texts"],
                "delay p50, s": found["delay_s"]["p50"],
                "delay p95, s": found["delay_s"]["p95"],
                "delay, s per hour": _interval(found["delay_slope_s_per_hour"], 4),
                "memory, MiB per hour": _interval(found["memory_slope_mib_per_hour"], 1),
                "overloads": found["overloads"],
            }
        ]
    if what == "uploads":
        return [
            {
                "requests": sum(found["statuses"].values()),
                **{f"status {status}": count for status, count in sorted(found["statuses"].items())},
                "lost": found["lost"],
                "not honest": len(found["refusals that were not honest"]),
                "seconds": found["seconds"],
                "answer p50, s": found["answer_s"]["p50"],
                "answer p95, s": found["answer_s"]["p95"],
                "memory, MiB": found["memory_mib"],
            }
        ]
    if what == "curve":
        return [
            {
                "service": one["way"],
                "clients": one["clients"],
                "requests a second": one["requests_per_s"],
                "answer p50, s": one["answer_s"]["p50"],
                "answer p95, s": one["answer_s"]["p95"],
                "memory, MiB": one["memory_mib"],
            }
            for one in found["trials"]
        ]
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
        for one in sorted(found["trials"], key=lambda one: (one["way"] != "one service", one["sessions"]))
    ]


def _interval(slope: dict[str, float] | None, digits: int) -> str:
    if slope is None:
        return ""
    return f"{slope['slope']:.{digits}f} ({slope['low']:.{digits}f} to {slope['high']:.{digits}f})"
