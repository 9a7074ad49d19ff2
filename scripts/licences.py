#!/usr/bin/env python3
"""Checks the dependencies against deny.toml: licences, bans and sources, as `cargo deny check` would, offline.

Understood of deny.toml: licenses.allow, exceptions; bans.multiple-versions, wildcards, skip, deny; sources.allow-registry.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {
    "graph": {"all-features"},
    "licenses": {"allow", "exceptions"},
    "bans": {"multiple-versions", "wildcards", "allow-wildcard-paths", "skip", "deny"},
    "sources": {"unknown-registry", "unknown-git", "allow-registry"},
}


def allowed(expression: str, allow: set[str]) -> bool:
    """Whether an SPDX expression can be met with the allowed licences."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1] if position <= len(tokens) else ""

    def term() -> bool:
        name = take()
        if name == "(":
            value = alternatives()
            if take() != ")":
                raise ValueError(f"licence {expression!r} is not understood")
            return value
        if peek() == "WITH":
            take()
            with_exception = f"{name} WITH {take()}"
            return with_exception in allow
        return name in allow

    def both() -> bool:
        value = term()
        while peek() == "AND":
            take()
            value = term() and value
        return value

    def alternatives() -> bool:
        value = both()
        while peek() == "OR":
            take()
            value = both() or value
        return value

    value = alternatives()
    if position != len(tokens):
        raise ValueError(f"licence {expression!r} is not understood")
    return value


def main() -> int:
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    unknown = [f"{part}.{key}" for part in rules for key in rules[part] if key not in KNOWN.get(part, set())]
    if unknown:
        print(f"deny.toml: not understood by this script: {', '.join(unknown)}", file=sys.stderr)
        return 1
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version=1", "--all-features", "--filter-platform=x86_64-unknown-linux-gnu"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    graph = json.loads(metadata.stdout)
    used = {node["id"] for node in graph["resolve"]["nodes"]}
    packages = [package for package in graph["packages"] if package["id"] in used]
    members = set(graph["workspace_members"])

    problems = []
    versions = defaultdict(set)
    allow = set(rules["licenses"]["allow"])
    banned = {entry["name"]: entry.get("reason", "") for entry in rules["bans"]["deny"]}
    skipped = [entry["crate"] for entry in rules["bans"]["skip"]]
    exceptions = {entry["name"]: set(entry["allow"]) for entry in rules["licenses"]["exceptions"]}
    registries = {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    for package in packages:
        what = f"{package['name']} {package['version']}"
        if not any(f"{package['name']}@{package['version']}".startswith(f"{skip}.") for skip in skipped):
            versions[package["name"]].add(package["version"])
        try:
            if not allowed(package["license"] or "none", allow | exceptions.get(package["name"], set())):
                problems.append(f"{what}: licence {package['license'] or 'not stated'}")
        except ValueError as error:
            problems.append(f"{what}: {error}")
        if package["name"] in banned:
            problems.append(f"{what}: banned: {banned[package['name']]}")
        if package["source"] is not None and package["source"] not in registries:
            problems.append(f"{what}: from {package['source']}")
        if package["source"] is None and package["id"] not in members:
            problems.append(f"{what}: from a path outside the workspace")
        if package["id"] in members:
            for dependency in package["dependencies"]:
                if dependency["req"] == "*" and dependency["source"] is not None:
                    problems.append(f"{what}: any version of {dependency['name']} will do")
    for name, found in sorted(versions.items()):
        if len(found) > 1:
            problems.append(f"{name}: several versions: {', '.join(sorted(found))}")

    for problem in problems:
        print(problem)
    failed = len({problem.split(":")[0] for problem in problems})
    print(f"licences, bans, sources: {len(packages) - failed} passed, {failed} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
