"""Prompts that an exchange joins with a number: building blocks, so every split may use them."""

from __future__ import annotations

# What follows the prompt: one digit, some digits, a count, or a time of day.
NUMBER_PROMPTS: dict[str, str] = {
    "conf-enteringno": "digits",
    "queue-thereare": "number",
    "vm-from-extension": "digits",
    "vm-from-phonenumber": "digits",
    "vm-extension": "digits",
    "vm-theperson": "digits",
    "vm-num-i-have": "digits",
    "vm-press": "digit",
    "dir-multi1": "digit",
    "dir-multi3": "digits",
    "to-extension": "digits",
    "telephone-number": "digits",
    "number": "digits",
    "you-entered": "digits",
    "at-tone-time-exactly": "time",
    "privacy-to-blacklist-last-caller": "digits",
    "conf-thereare": "number",
    "confbridge-there-are": "number",
    "queue-quantity1": "number",
    "queue-less-than": "number",
    "vm-youhave": "number",
}
CARRIERS: frozenset[str] = frozenset(NUMBER_PROMPTS) | {
    "queue-holdtime",
    "vm-isonphone",
    "vm-isunavail",
    "vm-received",
    "is-in-use",
}
