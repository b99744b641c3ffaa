"""Forty JSON schemas of many kinds, and some that are made to do harm."""

from __future__ import annotations

import json

WORD = {"type": "string", "maxLength": 12}
INTEGER = {"type": "integer", "minimum": 0, "maximum": 999}
SHORT = {"type": "string", "pattern": "^[a-z]{1,6}$"}


def record(**properties):
    """An object with exactly these properties."""
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def tree(depth):
    return record(value=INTEGER) if depth == 0 else record(left=tree(depth - 1), right=tree(depth - 1))


SCHEMAS = {
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "bounded integer": {"type": "integer", "minimum": -3, "maximum": 1234},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 20},
    "multiple": {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 7},
    "bounded number": {"type": "number", "minimum": 0.25, "maximum": 0.75},
    "negative number": {"type": "number", "maximum": -1, "minimum": -100},
    "short string": {"type": "string", "minLength": 3, "maxLength": 9},
    "one character": {"type": "string", "minLength": 1, "maxLength": 1},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "identifier": {"type": "string", "format": "uuid"},
    "address": {"type": "string", "format": "ipv4"},
    "constant": {"const": {"a": [1, None, "\u00e9\n\"\\"], "b": 1.5}},
    "enum of words": {"enum": ["red", "green", "blue"]},
    "enum of all kinds": {"enum": [1, "one", None, [1], {"one": 1}, 2.5, True]},
    "long common beginnings": {"enum": ["a" * 40 + str(i) for i in range(30)]},
    "several types": {"type": ["integer", "boolean", "null"], "minimum": 0, "maximum": 50},
    "any of": {"anyOf": [INTEGER, {"type": "boolean"}, record(a=INTEGER)]},
    "any of objects": {"anyOf": [record(a=INTEGER, b=WORD), record(a=INTEGER, c={"type": "null"})]},
    "one of by a tag": {"oneOf": [record(kind={"const": "cat"}, n=INTEGER), record(kind={"const": "dog"}, s=SHORT)]},
    "all of": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 12}]},
    "object": record(name=WORD, age=INTEGER, kind={"enum": ["cat", "dog"]}),
    "optional properties": {
        "type": "object", "properties": {"a": INTEGER, "b": SHORT, "c": {"type": "boolean"}}, "required": ["b"],
        "additionalProperties": False,
    },
    "nothing": {"type": "object", "additionalProperties": False},
    "map": {"type": "object", "additionalProperties": INTEGER, "minProperties": 1, "maxProperties": 3},
    "names by a pattern": {
        "type": "object", "patternProperties": {"^k[0-9]$": INTEGER}, "additionalProperties": False, "maxProperties": 2,
    },
    "property that is required alone": {
        "type": "object", "required": ["x"], "additionalProperties": INTEGER, "maxProperties": 2,
    },
    "nested": record(a=record(b=record(c=record(d=INTEGER)))),
    "tree": tree(2),
    "array": {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 5},
    "empty array": {"type": "array", "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [INTEGER, SHORT, {"type": "null"}], "items": False, "minItems": 3},
    "array of objects": {"type": "array", "items": record(x=INTEGER, y=INTEGER), "minItems": 1, "maxItems": 3},
    "array of arrays": {
        "type": "array", "minItems": 2, "maxItems": 2,
        "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
    },
    "reference": {
        "$defs": {"point": record(x=INTEGER, y=INTEGER)},
        **record(a={"$ref": "#/$defs/point"}, b={"$ref": "#/$defs/point"}),
    },
    "list that refers to itself": {
        "$defs": {"list": record(head={"enum": [0, 1]}, tail={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]})},
        "$ref": "#/$defs/list",
    },
    "names to be escaped": record(**{"a\"b": INTEGER, "\u65e5\u672c": INTEGER, "c\\d": {"const": "\u00fc"}}),
    "everything": record(
        id={"type": "integer", "minimum": 1, "maximum": 9}, tags={"type": "array", "items": SHORT, "maxItems": 2},
        shape={"anyOf": [record(r=INTEGER), record(w=INTEGER, h=INTEGER)]}, note={"type": ["null", "boolean"]},
    ),
}  # fmt: skip

DEEP = "{'type':'array','items':".replace("'", '"') * 10_000 + "{}" + "}" * 10_000

HOSTILE = {
    "deep text": {"json_schema": DEEP},
    "deep schema": {"json_schema": '{"anyOf":[' * 900 + "{}" + "]}" * 900},
    "hundred thousand values": {"json_schema": {"enum": [f"v{i}" for i in range(100_000)]}},
    "values that are alike": {"json_schema": {"enum": [f"{'a' * 500}{i}" for i in range(1_500)]}},
    "ten thousand optional properties": {
        "json_schema": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(10_000)}}
    },
    "references that double": {
        "json_schema": {
            "$defs": {f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
            | {"d60": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    },
    "all of that multiplies": {
        "json_schema": {"allOf": [{"anyOf": [{"const": f"{i}{j}"} for j in range(8)]} for i in range(12)]}
    },
    "reference in a circle": {"json_schema": {"$ref": "#"}},
    "long array": {"json_schema": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}}},
    "long string": {"json_schema": {"type": "string", "minLength": 10**9}},
    "pattern that explodes": {"json_schema": {"type": "string", "pattern": "^(([a-z]+)*)+x(.*a){30}$"}},
    "nested counts": {"regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"},
    "states that double": {"regex": "(a|b)*a(a|b){200}"},
    "deep brackets": {"regex": "(" * 5_000 + "a" + ")" * 5_000},
    "ambiguous grammar": {"grammar": 'start: s\ns: s s | "a" | "b" | s s s'},
    "grammar without an end": {"grammar": 'start: "a" start'},
    "deep grammar": {"grammar": "root ::= " + "(" * 3_000 + '"a"' + ")" * 3_000},
    "many rules": {"grammar": "\n".join(f'r{i} ::= "a"' for i in range(20_000)) + '\nroot ::= "a"'},
    "counted grammar": {"grammar": 'start: "ab"{1000000000}'},
}
"""None of these may take more memory than the limits give, or raise anything but a ConstraintError."""

assert len(SCHEMAS) == 40
assert json.dumps(SCHEMAS)
