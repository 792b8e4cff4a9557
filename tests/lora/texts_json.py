"""Forty good replies in JSON with their prompts, written for these tests after the thresholds were set."""

# ruff: noqa: E501  (texts stand as they are)

from __future__ import annotations

import json
from typing import Any

_REPLIES: list[tuple[str, Any, int | None]] = [
    ("Extract the name and the age: Mia is 31 years old.", {"name": "Mia", "age": 31}, None),
    ("Return an empty object as JSON.", {}, None),
    ("Give the temperatures of a week as JSON.", {"unit": "C", "values": [12, 14, 13, 13, 15, 17, 16]}, None),
    ("A zero matrix of 5 by 5 as JSON", [[0] * 5 for _ in range(5)], None),
    ("Twelve zeros as a JSON array", [0] * 12, None),
    ("Seats of a small cinema, all free, as JSON", [{"row": r, "seat": s, "taken": False} for r in "AB" for s in (1, 2, 3)], None),
    ("Which function should be called for: weather in Oslo?", {"name": "get_weather", "arguments": {"city": "Oslo"}}, None),
    ("Classify the sentiment: I love it!", {"label": "positive", "score": 0.98}, None),
    ("A recipe as JSON", {"title": "Pancakes", "ingredients": [{"name": "flour", "grams": 200}, {"name": "milk", "grams": 400},
     {"name": "egg", "count": 2}], "minutes": 30}, 2),
    ("Three users as JSON", [{"id": i, "name": n, "active": True} for i, n in enumerate(("Ann", "Bo", "Cy"), 1)], 2),
    ("JSON schema of a person", {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
     "required": ["name"]}, 2),
    ("Config of a linter as JSON", {"extends": "eslint:recommended", "rules": {"semi": ["error", "always"], "quotes": ["error",
     "double"], "indent": ["error", 2]}}, 2),
    ("A truth table of AND as JSON", [{"a": a, "b": b, "and": a and b} for a in (False, True) for b in (False, True)], 2),
    ("Board of tic-tac-toe at the start, as JSON", [["", "", ""], ["", "", ""], ["", "", ""]], None),
    ("A GeoJSON point for Berlin", {"type": "Feature", "geometry": {"type": "Point", "coordinates": [13.4, 52.52]},
     "properties": {"name": "Berlin"}}, None),
    ("Entities in: Paris is in France.", {"entities": [{"text": "Paris", "type": "city"}, {"text": "France", "type":
     "country"}]}, None),
    ("Is the mail spam? Answer in JSON.", {"spam": False}, None),
    ("An invoice as JSON", {"number": "2024-017", "lines": [{"item": "Chair", "count": 4, "price": 49.5}, {"item": "Table",
     "count": 1, "price": 180.0}], "total": 378.0, "currency": "EUR"}, 2),
    ("package.json of a small library", {"name": "tiny-lib", "version": "1.0.0", "main": "index.js", "scripts": {"test":
     "node --test"}, "license": "MIT"}, 2),
    ("One-hot vector of length 10 with a 1 at index 3, as JSON", [1 if i == 3 else 0 for i in range(10)], None),
    ("Opening hours as JSON", {day: {"open": "09:00", "close": "18:00"} for day in ("mon", "tue", "wed", "thu", "fri")}, 2),
    ("A quiz question as JSON", {"question": "Capital of Peru?", "options": ["Lima", "Quito", "La Paz", "Bogota"], "answer": 0},
     None),
    ("Null object with five fields", dict.fromkeys(("a", "b", "c", "d", "e")), None),
    ("Translate the keys, keep the values.", {"nom": "Luc", "âge": 9, "ville": "Lyon"}, None),
    ("A tree as JSON", {"value": 1, "left": {"value": 2, "left": None, "right": None}, "right": {"value": 3, "left": None,
     "right": None}}, 2),
    ("Coordinates of a square", [[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]], None),
    ("Slots of a calendar on one day", [{"start": f"{h:02}:00", "end": f"{h + 1:02}:00", "free": True} for h in range(9, 15)],
     None),
    ("Ratings of five films", {"Alien": 8.5, "Heat": 8.3, "Up": 8.3, "Jaws": 8.1, "Big": 7.3}, 2),
    ("A chat as messages", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! How can I help?"}], 2),
    ("Moves of a chess opening", {"name": "Italian Game", "moves": ["e4", "e5", "Nf3", "Nc6", "Bc4", "Bc5"]}, None),
    ("RGB values of a black image, 3 by 3", {"width": 3, "height": 3, "pixels": [[0, 0, 0]] * 9}, None),
    ("Stock of a shop", {"apples": 120, "pears": 80, "plums": 0, "figs": 15}, 2),
    ("Error message as JSON", {"error": {"code": 404, "message": "Not found", "details": []}}, None),
    ("Feature flags", {"dark_mode": True, "beta": False, "new_editor": False, "search_v2": True}, None),
    ("Two-dimensional checkerboard of 4 by 4", [[(r + c) % 2 for c in range(4)] for r in range(4)], None),
    ("A log line as JSON", {"time": "2024-05-31T12:00:00Z", "level": "WARNING", "message": "disk almost full", "host": "n1"},
     None),
    ("List the primes below 40.", [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37], None),
    ("A menu", {"starters": ["soup", "salad"], "mains": ["pasta", "fish", "risotto"], "desserts": ["cake"]}, 2),
    ("Emoji by name", {"smile": "😀", "heart": "❤️", "family": "👨‍👩‍👧"}, None),
    ("提取姓名和城市：张伟住在成都。", {"name": "张伟", "city": "成都"}, None),
]  # fmt: skip

GOOD = [(prompt, json.dumps(reply, indent=indent, ensure_ascii=False)) for prompt, reply, indent in _REPLIES]
