"""As much of JSON Schema as our published schemas use; a keyword that is not known is an error of the test."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KNOWN = {"$schema", "$id", "title", "description", "type", "properties", "required", "additionalProperties"}
KNOWN |= {"items", "enum", "const", "pattern", "minimum", "maxLength"}
TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def errors(document: Any, schema: Mapping[str, Any], path: str = "$") -> list[str]:
    """Return everything in which a document differs from a schema."""
    assert schema.keys() <= KNOWN, f"unknown keywords {schema.keys() - KNOWN}"
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(document, bool) or not isinstance(document, tuple(t for kind in kinds for t in TYPES[kind])):
        return [f"{path}: is not {' or '.join(kinds)}"]
    found = []
    if "enum" in schema and document not in schema["enum"]:
        found.append(f"{path}: is not one of {schema['enum']}")
    if "const" in schema and document != schema["const"]:
        found.append(f"{path}: is not {schema['const']}")
    if "minimum" in schema and isinstance(document, int | float) and document < schema["minimum"]:
        found.append(f"{path}: is less than {schema['minimum']}")
    if isinstance(document, str):
        if "pattern" in schema and not re.search(schema["pattern"], document):
            found.append(f"{path}: does not match {schema['pattern']}")
        if len(document) > schema.get("maxLength", len(document)):
            found.append(f"{path}: is longer than {schema['maxLength']}")
    if isinstance(document, list) and "items" in schema:
        for index, item in enumerate(document):
            found += errors(item, schema["items"], f"{path}[{index}]")
    if isinstance(document, dict):
        properties = schema.get("properties", {})
        found += [f"{path}.{key}: is missing" for key in schema.get("required", ()) if key not in document]
        for key, value in document.items():
            if key in properties:
                found += errors(value, properties[key], f"{path}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{path}.{key}: is not known")
    return found
